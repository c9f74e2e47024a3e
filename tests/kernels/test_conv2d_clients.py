"""The stacked convolution: every tile that the autotuner may pick, what all ways have in common, and its mistakes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from fastlocal.kernels.case import Draws
from fastlocal.kernels.conv2d_clients import im2col, loop, reference, triton_kernel, triton_tiles
from fastlocal.kernels.conv2d_clients.cases import Layer
from fastlocal.kernels.conv2d_clients.geometry import Geometry, channels_last
from fastlocal.kernels.conv2d_clients_input_grad import triton_kernel as triton_input_grad
from fastlocal.kernels.conv2d_clients_weight_grad import triton_kernel as triton_weight_grad
from tests.kernels.checker import TOLERANCES

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ODD = Layer(2, 1, 9, (5, 6), 18, geometry=Geometry(stride=(2, 1), padding=(1, 1)), last=True)
# of whole tiles of channels each turn of the forward kernel takes those of one tap
WHOLE = Layer(1, 1, 64, (3, 4), 18, kernel=(2, 3), last=True)
TILES = {
    "forward": triton_tiles.PIXELS_BY_CHANNELS,
    "input_grad": triton_tiles.PIXELS_BY_CHANNELS,
    "weight_grad": triton_tiles.TERMS_BY_CHANNELS,
}


def operands(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """Images, filters and a gradient of the result."""
    draw = Draws(DEVICE)
    return layer.images(draw, layer.x_shape), layer.filters(draw), layer.images(draw, layer.y_shape)


@pytest.mark.parametrize(
    ("product", "layer", "tile"),
    [
        pytest.param(name, layer, tile, id=f"{name} {kind} {' '.join(map(str, tile.all_kwargs().values()))}")
        for name, tiles in TILES.items()
        for kind, layer in (("odd", ODD), *([("whole", WHOLE)] if name == "forward" else []))
        for tile in tiles
    ],
)
def test_every_tile(product: str, layer: Layer, tile: Any) -> None:
    x, weight, grad = operands(layer)
    assert channels_last(x) and channels_last(grad)
    wide = [operand.double() for operand in (grad, x, weight)]
    exact = reference.conv2d_clients_backward(*wide, geometry=layer.geometry)
    options: dict[str, Any] = {"geometry": layer.geometry, "tile": tile}
    if product == "forward":
        got, expected = (
            triton_kernel.conv2d_clients(x, weight, **options),
            reference.conv2d_clients(*wide[1:], geometry=layer.geometry),
        )
    elif product == "input_grad":
        got, expected = triton_input_grad.conv2d_clients_input_grad(grad, x, weight, **options), exact[0]
    else:
        got, expected = triton_weight_grad.conv2d_clients_weight_grad(grad, x, weight, **options), exact[1]
    assert isinstance(got, Tensor) and isinstance(expected, Tensor)
    tolerance = TOLERANCES["tf32"] * float(expected.abs().max())
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)


def test_there_is_a_tile_for_every_layer() -> None:
    flags = (False, True)
    for columns, depth, itemsize, narrow, split, phases in itertools.product(
        (1, 16, 17, 64, 100, 4096), (1, 27, 10_000), (2, 4), flags, flags, flags
    ):
        options = {"itemsize": itemsize, "narrow": narrow, "split": split and itemsize == 4, "phases": phases}
        for tiles in TILES.values():
            kept = triton_tiles.fitting_tiles(tiles, columns, depth, **options)
            fitting = [tile for tile in kept if min(columns, 64) <= tile.kwargs["COLUMNS"] < 2 * max(columns, 16)]
            assert kept and fitting == kept, (columns, depth, options)


@pytest.mark.parametrize("pixels", [1, 511, 1025, 4321])
def test_a_sum_over_pixels_in_any_number_of_parts(pixels: int) -> None:
    layer = Layer(1, 1, 2, (1, pixels), 3, kernel=(1, 1), geometry=Geometry())
    x, weight, grad = operands(layer)
    got = triton_weight_grad.conv2d_clients_weight_grad(grad, x, weight, geometry=layer.geometry)
    expected = torch.einsum("cbohw,cbihw->coi", grad.double(), x.double()).view(weight.shape)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=TOLERANCES["tf32"] * float(expected.abs().max()))


def check_statistics(y: Tensor, mean: Tensor, rstd: Tensor) -> None:
    exact = y.double().transpose(1, 2).flatten(2)
    torch.testing.assert_close(mean[:, 0].double(), exact.mean(dim=-1), rtol=1e-5, atol=1e-6)
    variance = exact.var(dim=-1, unbiased=False)
    torch.testing.assert_close(rstd[:, 0].double(), (variance + 1e-5).rsqrt(), rtol=1e-4, atol=0)


def test_statistics_are_right_after_tiles_were_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[float] = []

    def bench(run: Callable[[], None], quantiles: Any) -> list[float]:
        run()
        timed.append(1.0 + len(timed))
        return [timed[-1]] * 3

    def tuned(kernel: Any, grid: Any, tile: Any, **arguments: Any) -> None:
        kernel[grid](**arguments)

    monkeypatch.setattr(triton_kernel._forward_kernel, "_do_bench", bench)
    monkeypatch.setattr(triton_kernel, "launch", tuned)
    layer = Layer(1, 1, 2, (3, 41), 3)
    x, weight, _ = operands(layer)
    found = triton_kernel.conv2d_clients(x, weight, geometry=layer.geometry, statistics_eps=1e-5)
    assert len(timed) > 1
    check_statistics(*found)


def test_statistics_of_a_given_small_tile_far_from_zero() -> None:
    """A variance of squares less the squared mean would lose all of its digits."""
    tile = triton.Config({"ROWS": 16, "COLUMNS": 16, "DEPTH": 16}, num_warps=1)
    layer = Layer(2, 1, 2, (5, 9), 3)
    x, weight, _ = operands(layer)
    bias = torch.full((2, 3), 1000.0)
    check_statistics(
        *triton_kernel.conv2d_clients(x, weight, bias, geometry=layer.geometry, statistics_eps=1e-5, tile=tile)
    )


@pytest.mark.parametrize("way", [reference, loop, im2col], ids=lambda way: way.__name__.rpartition(".")[2])
@pytest.mark.parametrize(
    "geometry",
    [Geometry((2, 1), (1, 2), (1, 2), 2), Geometry((1, 1), (1, 1)), Geometry((3, 3), (0, 0))],
    ids=["uneven", "usual", "sparse"],
)
@pytest.mark.parametrize("last", [False, True])
def test_ways_in_torch_are_each_clients_own_convolution(way: Any, geometry: Geometry, last: bool) -> None:
    layer = Layer(3, 2, 4, (6, 7), 6, geometry=geometry)
    x, weight, grad = (operand.double() for operand in operands(layer))
    if last:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    x.requires_grad_()
    weight.requires_grad_()
    window = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    exact = torch.stack([F.conv2d(*one, None, *window) for one in zip(x, weight, strict=True)])
    gradients = torch.autograd.grad(exact, (x, weight), grad)
    x, weight = x.detach(), weight.detach()
    y = way.conv2d_clients(x, weight, geometry=geometry)
    torch.testing.assert_close(y, exact)
    assert channels_last(y) == last
    for found, own in zip(way.conv2d_clients_backward(grad, x, weight, geometry=geometry), gradients, strict=True):
        torch.testing.assert_close(found, own)
    alone = way.conv2d_clients_backward(grad, x, weight, geometry=geometry, need_x=False)
    assert alone[0] is None
    torch.testing.assert_close(alone[1], gradients[1])


def test_shapes_that_do_not_fit_are_said() -> None:
    x, weight = torch.zeros(2, 1, 4, 5, 5), torch.zeros(2, 3, 4, 3, 3)
    geometry = Geometry()
    with pytest.raises(ValueError, match=r"images \[1, 1, 4, 5, 5\] and filters \[2, 3, 4, 3, 3\]"):
        geometry.check(x[:1], weight)
    with pytest.raises(ValueError, match="channels do not fit: .* of 3 groups"):
        Geometry(groups=3).check(x, weight)
    with pytest.raises(ValueError, match="filters larger than the padded images"):
        geometry.check(x[..., :2, :], weight)
    with pytest.raises(ValueError, match="five axes"):
        geometry.check(x[0], weight[0])
