"""What torch refuses, the stacked operations refuse as torch does; and what it takes at the edges, they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastlocal.kernels import functional

X, W = torch.ones(2, 4, 5, 5), torch.ones(6, 4, 3, 3)

CONVOLUTIONS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "unknown padding": ((X, W), {"padding": "foo"}),
    "same padding with a stride": ((X, W), {"padding": "same", "stride": 2}),
    "negative padding": ((X, W), {"padding": -1}),
    "no stride": ((X, W), {"stride": 0}),
    "three strides": ((X, W), {"stride": (1, 1, 1)}),
    "no dilation": ((X, W), {"dilation": (1, 0)}),
    "no groups": ((X, W), {"groups": 0}),
    "groups that do not divide": ((X, W), {"groups": 3}),
    "other channels": ((X[:, :3], W), {}),
    "filters larger than the images": ((X[..., :2], W), {}),
    "filters of three axes": ((X, W[0]), {}),
    "a bias of another length": ((X, W, torch.ones(5)), {}),
    "a scalar bias": ((X, W, torch.ones(())), {}),
    "other dtypes": ((X, W.double()), {}),
    "a bias of another dtype": ((X, W, torch.ones(6).double()), {}),
    "five axes": ((X[None], W), {}),
}

NORMS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "no groups": ("group_norm", (X, 0)),
    "negative groups": ("group_norm", (X, -2)),
    "groups that do not divide": ("group_norm", (X, 3)),
    "one value in each group": ("group_norm", (X[:1, :, 0, 0], 4)),
    "no channels axis": ("group_norm", (X[0, 0, 0], 1)),
    "a weight of another length": ("group_norm", (X, 2, torch.ones(3))),
    "whole numbers": ("group_norm", (X.int(), 2)),
    "one value per channel": ("batch_norm", (X[:1, :, 0, 0], None, None, None, None, True)),
    "one value per channel, images": ("batch_norm", (X[:1, :, :1, :1], None, None, None, None, True)),
    "no channels": ("batch_norm", (X[0, 0, 0], None, None, None, None, True)),
    "a bias of another length": ("batch_norm", (X, None, None, None, torch.ones(5), True)),
}


def error_of(run: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011 the type is what is compared
        run()
    return raised.value


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    given, options = CONVOLUTIONS[name]
    torchs = error_of(lambda: F.conv2d(*given, **options))
    found = error_of(lambda: functional.conv2d(*given, **options, strategy="loop"))
    assert (type(found), str(found)) == (type(torchs), str(torchs))


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    function, given = NORMS[name]
    torchs = error_of(lambda: getattr(F, function)(*given))
    found = error_of(lambda: getattr(functional, function)(*given, backend="reference"))
    assert (type(found), str(found)) == (type(torchs), str(torchs))


def test_what_has_no_namesake_in_torch() -> None:
    with pytest.raises(ValueError, match="3 groups do not divide 4 channels"):
        functional.norm_act(X, groups=3)
    with pytest.raises(ValueError, match="one value per channel"):
        functional.norm_act(X[:1, :, :1, :1], groups=0)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize(
    ("shape", "groups"), [((0, 4, 3, 3), 2), ((0, 4, 3, 3), 0), ((2, 4, 0, 3), 0), ((3, 4), 4), ((3, 4), 0)], ids=str
)
def test_norms_of_nothing_and_of_few(shape: tuple[int, ...], groups: int, backend: str) -> None:
    draw = torch.Generator().manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, weight, bias = (torch.randn(size, generator=draw).to(device) for size in (shape, (4,), (4,)))
    factors = torch.arange(1.0, 5.0, device=device).view(4, *(1 for _ in shape[2:]))

    def gradients(run: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        y = run(*leaves)
        return y.detach(), *torch.autograd.grad((y * factors).sum(), leaves)

    if groups:
        ours = gradients(lambda x, *affine: functional.group_norm(x, groups, *affine, backend=backend))
        torchs = gradients(lambda x, *affine: F.group_norm(x, groups, *affine))
    else:
        ours = gradients(lambda x, *affine: functional.batch_norm(x, None, None, *affine, True, backend=backend))
        torchs = gradients(lambda x, *affine: F.batch_norm(x, None, None, *affine, True))
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 0, 4), (0, 2, 4), (3, 2, 4)], ids=str)
def test_linear_layers_under_vmap_are_each_clients_own(shape: tuple[int, int, int]) -> None:
    """Of any strides, and of no clients or samples."""
    clients, batch, width = shape
    x = torch.randn(batch, width, clients, dtype=torch.float64).permute(2, 0, 1).requires_grad_()
    weight = torch.randn(clients, width, 10, dtype=torch.float64)[..., ::2].mT.requires_grad_()
    bias = torch.randn(5, clients, dtype=torch.float64).T.requires_grad_()
    with functional.StackedOps():
        y = torch.vmap(F.linear)(x, weight, bias)
    exact = torch.einsum("cbi,coi->cbo", x, weight) + bias[:, None]
    torch.testing.assert_close(y, exact)
    for one, other in zip(*(torch.autograd.grad(out.sum(), (x, weight, bias)) for out in (y, exact)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
def test_linear_layers_take_any_number_of_axes(lead: tuple[int, ...], with_bias: bool, low: bool) -> None:
    """And give what torch's give, in the same type, autocast or not; gradients of rows are stored as weights are."""
    draw = torch.Generator().manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = ((*lead, 4), (5, 4), (5,)) if with_bias else ((*lead, 4), (5, 4))
    given = [torch.randn(2, *size, generator=draw).to(device).requires_grad_() for size in sizes]
    with torch.autocast(device, torch.bfloat16, enabled=low):
        expected = torch.stack([F.linear(*parts) for parts in zip(*given, strict=True)])
        with functional.StackedOps():
            got = torch.vmap(F.linear)(*given)
    assert got.dtype == expected.dtype or not lead, "one axis is left to torch, which adds the bias in fp32"
    tolerance = 2e-2 if low else 1e-5
    torch.testing.assert_close(got.float(), expected.float(), rtol=tolerance, atol=tolerance)
    ours, torchs = (torch.autograd.grad(out.float().square().sum(), given) for out in (got, expected))
    for one, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=4 * tolerance)
    if len(lead) == 1 and device == "cpu":
        assert ours[1].is_contiguous(), "what makes it fast"
