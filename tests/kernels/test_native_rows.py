"""Images gathered and clients summed in C++ are, to the bit, what torch makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastlocal import kernels
from fastlocal.kernels import native
from fastlocal.kernels.gather_augment.cpu import gather_boxes

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SHAPES = [(3, 32, 32), (3, 5, 7), (1, 28, 28), (2, 1, 1), (3, 64, 64)]


def both(monkeypatch: pytest.MonkeyPatch, *given: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """What gather_boxes returns with C++ and without."""
    own = gather_boxes(*given, **options)
    with monkeypatch.context() as patch:
        patch.setattr(native, "is_loaded", lambda: False)
        patch.setattr(torch.ops.fastlocal_native, "gather_images", None)
        return own, gather_boxes(*given, **options)


def boxes_of(padding: int, *shape: int) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(1)
    top, left = (torch.randint(0, 2 * padding + 1, shape, generator=draw) for _ in range(2))
    return top, left, torch.randint(0, 2, shape, generator=draw).bool()


@pytest.mark.parametrize("padding", [None, 0, 1, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_images(shape: tuple[int, ...], padding: int | None, ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if padding is not None and padding > min(shape[1:]):
        padding = min(shape[1:])
    images = torch.arange(11 * shape[0] * shape[1] * shape[2]).remainder(251).to(torch.uint8).view(11, *shape)
    ids = torch.tensor([[3, 10, 0, 3, 7], [1, 1, 9, 10, 2]])
    boxes = None if padding is None else boxes_of(padding, 2, 5)
    options = {"mean": MEAN[: shape[0]], "std": STD[: shape[0]], "dtype": torch.float32}
    own, torchs = both(monkeypatch, images, ids, boxes, padding=padding or 0, **options)
    assert own.shape == (2, 5, *shape) and torch.equal(own, torchs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_images_of_other_types_and_layouts(dtype: torch.dtype, ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.arange(6 * 3 * 8 * 8).remainder(255).to(torch.uint8).view(6, 8, 8, 3).permute(0, 3, 1, 2)
    for given, kind in ((images.contiguous(), dtype), (images, torch.float32)):
        ids = torch.arange(12).remainder(6)[::2]
        own, torchs = both(monkeypatch, given, ids, boxes_of(4, 6), padding=4, mean=MEAN, std=STD, dtype=kind)
        assert own.dtype == kind and torch.equal(own, torchs)


def test_many_images_on_two_threads(ops: Any) -> None:
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8)
    ids, boxes = torch.randint(0, 50, (400,)), boxes_of(4, 400)
    options = {"padding": 4, "mean": MEAN, "std": STD, "dtype": torch.float32}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = gather_boxes(images, ids, boxes, **options)
        torch.set_num_threads(2)
        two = gather_boxes(images, ids, boxes, **options)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


@pytest.mark.parametrize("wrong", [-1, 6])
def test_an_image_that_is_not_there(wrong: int, ops: Any) -> None:
    images, ids = torch.zeros(6, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, wrong])
    with pytest.raises(RuntimeError, match="beyond the images"):
        gather_boxes(images, ids, None, padding=0, mean=MEAN, std=STD, dtype=torch.float32)


def test_what_does_not_fit_is_refused(ops: Any) -> None:
    images, ids = torch.zeros(6, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    row, out = torch.ones(3), torch.empty(2, 3, 4, 4)
    boxes = torch.zeros(3, 2, dtype=torch.int64)
    ops.gather_images(images, ids, boxes, row, row, out, 0)
    for given, says in (
        ((images.float(), ids, boxes, row, row, out), "contiguous bytes"),
        ((images, ids.int(), boxes, row, row, out), "int64"),
        ((images, ids, boxes[:2], row, row, out), "int64"),
        ((images, ids, boxes, row.double(), row, out), "rows of floats"),
        ((images, ids, boxes, row[:2], row, out), "have to fit"),
        ((images, ids, boxes, row, row, out[:1]), "have to fit"),
        ((images, ids, boxes + 1, row, row, out), "beyond the padding"),
        ((images, ids, boxes - 1, row, row, out), "beyond the padding"),
    ):
        with pytest.raises(RuntimeError, match=says):
            ops.gather_images(*given, 0)


@pytest.mark.parametrize(("clients", "n_params"), [(1, 1), (3, 129), (2, 5000), (5, 2048), (0, 7), (4, 0)])
def test_sums_of_clients(clients: int, n_params: int, ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows that lie apart, in one chunk, in two, and without C++."""
    draw = torch.Generator().manual_seed(0)
    params = torch.randn(clients, n_params + 3, generator=draw)[:, :n_params]
    before = torch.randn(n_params, generator=draw, dtype=torch.float64)
    add = kernels.get("client_mean", "cpu", "cpu")
    whole, parts, torchs = before.clone(), before.clone(), before.clone()
    add(params, whole, 1.0)
    add(params[:1], parts, 1.0)
    add(params[1:], parts, 1.0)
    monkeypatch.setattr(native, "is_loaded", lambda: False)
    add(params, torchs, 1.0)
    assert torch.equal(whole, parts) and torch.equal(whole, torchs)
    torch.testing.assert_close(whole, before + params.double().sum(dim=0), rtol=1e-14, atol=1e-14)


def test_sums_have_to_fit(ops: Any) -> None:
    params, total = torch.zeros(2, 6), torch.zeros(6, dtype=torch.float64)
    for given in ((params.t(), total), (params.double(), total), (params, total[:5]), (params, total.float())):
        with pytest.raises(RuntimeError, match="rows of floats|a row of doubles"):
            ops.client_sum(*given, 1.0)
