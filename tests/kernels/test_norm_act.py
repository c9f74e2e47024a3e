"""norm_act: torch's own modules client by client, values that are hard on statistics, and memory of every kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastlocal import kernels
from fastlocal.kernels.norm_act import reference
from fastlocal.kernels.norm_act.reference import ACTIVATIONS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["reference", "triton"]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    draw = torch.Generator(DEVICE).manual_seed(len(shape))
    return torch.randn(shape, dtype=dtype, device=DEVICE, generator=draw)


@pytest.mark.parametrize("groups", [0, 1, 3, 6])
def test_each_client_is_torchs_norm(groups: int) -> None:
    x, weight, bias = normal(3, 4, 6, 5, 2, dtype=torch.float64), *normal(2, 3, 6, dtype=torch.float64)
    y, mean, rstd = reference.norm_act(x, weight, bias, groups=groups, eps=1e-3)
    for client in range(3):
        affine = (weight[client], bias[client])
        if groups:
            own = F.group_norm(x[client], groups, *affine, eps=1e-3)
        else:
            own = F.batch_norm(x[client], None, None, *affine, training=True, eps=1e-3)
        torch.testing.assert_close(y[client], own)
    assert mean.shape == rstd.shape == reference.statistics_shape(x, groups)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("groups", "shape"), [(2, (2, 2, 4, 6, 6)), (0, (2, 4, 3, 5, 5)), (0, (1, 5, 4, 64, 60))])
def test_a_mean_far_from_zero_costs_no_digits(backend: str, groups: int, shape: tuple[int, ...]) -> None:
    x = normal(*shape) + 4096  # the squares' sum alone would keep about two digits of the variance
    y, _, rstd = kernels.get("norm_act", backend, DEVICE)(x, groups=groups)
    exact, _, exact_rstd = reference.norm_act(x.double(), groups=groups)
    torch.testing.assert_close(rstd.double(), exact_rstd, rtol=1e-3, atol=0)
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=5e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_value_that_is_not_finite_is_seen(backend: str, activation: str) -> None:
    x = normal(2, 2, 4, 3, 3)
    x[1, 0, 2, 1, 1] = float("nan")
    y, _, _ = kernels.get("norm_act", backend, DEVICE)(x, groups=2, activation=activation)
    assert y[0].isfinite().all() and y[1, 1].isfinite().all() and y[1, 0, :2].isfinite().all()
    assert y[1, 0, 2:].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [2, 0])
def test_pixels_that_do_not_lie_as_one_axis(backend: str, groups: int) -> None:
    wide = normal(2, 3, 4, 5, 7)
    x, residual, grad = wide[..., 1:5], normal(2, 3, 4, 4, 5).mT, normal(2, 3, 4, 4, 5).mT
    op, backward = (kernels.get(name, backend, DEVICE) for name in ("norm_act", "norm_act_backward"))
    saved = op(x, None, None, residual, groups=groups, activation="relu")
    packed = op(x.contiguous(), None, None, residual.contiguous(), groups=groups, activation="relu")
    for found, exact in zip(saved, packed, strict=True):
        torch.testing.assert_close(found, exact)
    options: dict[str, Any] = {"groups": groups, "activation": "relu"}
    found = backward(grad, x, None, None, residual, *saved[1:], **options)
    exact = backward(grad.contiguous(), x.contiguous(), None, None, residual.contiguous(), *saved[1:], **options)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mistakes_are_said(backend: str) -> None:
    op, x = kernels.get("norm_act", backend, DEVICE), normal(2, 3, 4, 5)
    with pytest.raises(ValueError, match="3 groups do not divide 4 channels"):
        op(x, groups=3)
    with pytest.raises(ValueError, match="unknown activation 'tanh'; known: none, relu, relu6, silu, hardswish"):
        op(x, groups=2, activation="tanh")
    with pytest.raises(ValueError, match=r"weight of shape \[4\] for inputs of shape \[2, 3, 4, 5\]"):
        op(x, torch.ones(4), groups=2)
    with pytest.raises(ValueError, match=r"a residual of shape \[2, 3, 4\]"):
        op(x, None, None, x[..., 0], groups=2)


def test_the_kernels_do_not_pretend_to_compute_in_float64() -> None:
    with pytest.raises(ValueError, match="use the reference for float64"):
        kernels.get("norm_act", "triton", DEVICE)(normal(1, 2, 2, 3, dtype=torch.float64), groups=1)
