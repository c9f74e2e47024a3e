"""Products of linear maps and updates of their weights in C++ are those of float64, wherever the numbers lie."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

MATRICES = [
    (128, 192, 16),
    (7, 130, 5),
    (5, 64, 1),
    (4, 63, 3),
    (1, 1, 2),
    (9, 257, 40),
    (6, 70, 0),
    (0, 64, 4),
    (3, 0, 4),
]


def matrix(*shape: int, seed: int) -> Tensor:
    """Of numbers that do not begin where vectors of 64 bytes do."""
    values = torch.randn(math.prod(shape) + 1, generator=torch.Generator().manual_seed(seed))
    return values[1:].view(shape)


@pytest.mark.parametrize(("mu", "decay"), [(0.9, 0.0), (0.5, 0.01), (0.0, 0.1)])
@pytest.mark.parametrize(("rows", "columns", "samples"), MATRICES)
def test_product_update(rows: int, columns: int, samples: int, mu: float, decay: float, ops: Any) -> None:
    weight, momentum = matrix(rows, columns, seed=0), matrix(rows, columns, seed=1)
    a, b = matrix(samples, rows, seed=2), matrix(samples, columns, seed=3)
    moving = mu * momentum.double() + a.double().t() @ b.double() + decay * weight.double()
    wanted = weight.double() - 0.3 * moving
    ops.product_update(weight, momentum, a, b, None, None, mu, decay, 0.0, 0.3)
    torch.testing.assert_close(momentum.double(), moving, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight.double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_product_update_leaves_the_rest_of_a_row_alone(ops: Any) -> None:
    """Weights are views of rows that hold other parameters beside them."""
    row, moving = torch.zeros(200), torch.zeros(200)
    a, b = torch.ones(3, 2), torch.ones(3, 65)
    ops.product_update(row[10:140].view(2, 65), moving[10:140].view(2, 65), a, b, None, None, 0.9, 0.0, 0.0, 1.0)
    assert torch.equal(row != 0, moving != 0) and row.nonzero().flatten().tolist() == list(range(10, 140))


def test_matrices_have_to_fit(ops: Any) -> None:
    weight, a, b = torch.zeros(4, 64), torch.zeros(2, 4), torch.zeros(2, 64)
    for given in ((weight, weight[:3], a, b), (weight, weight, a.t(), b), (weight, weight, a, b[:1])):
        with pytest.raises(RuntimeError, match="contiguous matrices|do not fit"):
            ops.product_update(*given, None, None, 0.9, 0.0, 0.0, 1.0)
    with pytest.raises(RuntimeError, match="contiguous matrices of floats"):
        ops.product_update(weight.double(), weight.double(), a, b, None, None, 0.9, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(("rows", "samples"), [(1, 3), (16, 1), (37, 20), (5, 0), (0, 2)])
def test_the_bias_beside_a_weight(rows: int, samples: int, ops: Any) -> None:
    bias, moving = matrix(rows, seed=0), matrix(rows, seed=1)
    a, weight = matrix(samples, rows, seed=2), torch.zeros(rows, 4)
    wanted_moving = 0.9 * moving.double() + a.double().sum(dim=0) + 0.1 * bias.double()
    wanted = bias.double() - 0.3 * wanted_moving
    ops.product_update(weight, weight.clone(), a, torch.zeros(samples, 4), bias, moving, 0.9, 0.5, 0.1, 0.3)
    torch.testing.assert_close(moving.double(), wanted_moving, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias.double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_bias_has_to_fit(ops: Any) -> None:
    weight, a, b, bias = torch.zeros(4, 8), torch.zeros(2, 4), torch.zeros(2, 8), torch.zeros(4)
    for pair, says in (
        ((bias, None), "if the weight has one"),
        ((bias, bias[:3]), "fits the weight"),
        ((bias.double(), bias), "fits"),
    ):
        with pytest.raises(RuntimeError, match=says):
            ops.product_update(weight, weight.clone(), a, b, *pair, 0.9, 0.0, 0.0, 1.0)
    with pytest.raises(RuntimeError, match="mu is 0 without momenta"):
        ops.product_update(weight, None, a, b, bias, None, 0.9, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("rows", "columns", "samples"), MATRICES)
def test_product(rows: int, columns: int, samples: int, with_bias: bool, ops: Any) -> None:
    x, weight, bias = matrix(samples, columns, seed=0), matrix(rows, columns, seed=1), matrix(rows, seed=2)
    y = torch.full((samples * rows + 2,), 7.0)
    ops.product(x, weight, bias if with_bias else None, y[1:-1].view(samples, rows))
    wanted = x.double() @ weight.double().t() + (bias.double() if with_bias else 0)
    torch.testing.assert_close(y[1:-1].view(samples, rows).double(), wanted, rtol=1e-5, atol=2e-5)
    assert y[0] == y[-1] == 7.0


def test_what_is_not_finite_stays_in_its_row(ops: Any) -> None:
    x, weight, y = matrix(3, 40, seed=0), matrix(20, 40, seed=1), torch.empty(3, 20)
    x[1, 37] = torch.nan
    ops.product(x, weight, None, y)
    assert y[1].isnan().all() and y[[0, 2]].isfinite().all()


def test_factors_have_to_fit(ops: Any) -> None:
    x, weight, y, bias = torch.zeros(2, 8), torch.zeros(3, 8), torch.zeros(2, 3), torch.zeros(3)
    for given in (
        (x, weight[:, :7], None, y),
        (x, weight[:2], None, y),
        (x[:1], weight, None, y),
        (x, weight, bias, y[0]),
    ):
        with pytest.raises(RuntimeError, match="contiguous matrices|do not fit"):
            ops.product(*given)
    for wrong in (bias[:2], bias.double(), torch.zeros(6)[::2]):
        with pytest.raises(RuntimeError, match="a row of floats that fits"):
            ops.product(x, weight, wrong, y)


LAST = torch.channels_last
GRADIENTS = {
    "row": matrix(37, seed=1),
    "one number": matrix(1, seed=1).view(()),
    "none": torch.zeros(0),
    "filters": matrix(6, 5, 3, 3, seed=1),
    "channels-last filters": matrix(6, 5, 3, 2, seed=1).contiguous(memory_format=LAST),
    "one channel": matrix(6, 1, 3, 3, seed=1).to(memory_format=LAST),
    "every second filter": matrix(12, 4, 3, 3, seed=1)[::2],
    "alike filters": matrix(1, 4, 3, 3, seed=1).expand(6, -1, -1, -1),
}


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize(("mu", "decay"), [(0.9, 0.0), (0.5, 0.01)])
def test_an_update_in_one_pass(kind: str, mu: float, decay: float, ops: Any) -> None:
    grad = GRADIENTS[kind]
    rows = matrix(2, grad.numel() + 4, seed=2)
    weight, momentum = (row[2:-2].view(grad.shape) for row in rows)
    edges = rows[:, [0, 1, -2, -1]].clone()
    moving = mu * momentum.double() + grad.double() + decay * weight.double()
    wanted = weight.double() - 0.3 * moving
    ops.sgd_update(weight, momentum, grad, mu, decay, 0.3)
    torch.testing.assert_close(momentum.double(), moving, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weight.double(), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(rows[:, [0, 1, -2, -1]], edges)


def test_what_is_updated_has_to_fit(ops: Any) -> None:
    weight, grad = torch.zeros(4, 6), torch.zeros(6, 4)
    for given in ((weight, weight, grad), (weight, weight[0], weight), (weight, weight, grad.double())):
        with pytest.raises(RuntimeError, match="of one shape"):
            ops.sgd_update(*given, 0.9, 0.0, 1.0)
    for given in ((weight, weight.clone(), grad.t()), (grad.t(), weight, weight)):
        with pytest.raises(RuntimeError, match="have to be contiguous"):
            ops.sgd_update(*given, 0.9, 0.0, 1.0)


def losses(ops: Any, outputs: Tensor, targets: Tensor, ignored: int = -100) -> tuple[Tensor, Tensor]:
    loss, grad = torch.empty(()), torch.empty_like(outputs)
    ops.cross_entropy(outputs, targets, loss, grad, ignored)
    return loss, grad


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
@pytest.mark.parametrize(("samples", "classes"), [(1, 1), (16, 10), (7, 1000), (3, 17)])
def test_cross_entropy(samples: int, classes: int, size: float, ops: Any) -> None:
    outputs, targets = size * matrix(samples, classes, seed=0), torch.arange(samples) * 7 % classes
    targets[samples // 2] = -100 if samples > 1 else 0
    exact = outputs.double().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(exact, targets)
    wanted.backward()
    loss, grad = losses(ops, outputs, targets)
    torch.testing.assert_close(loss.double(), wanted.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), exact.grad, rtol=1e-5, atol=1e-7)


def test_a_loss_that_is_not_finite(ops: Any) -> None:
    targets = torch.tensor([0, 1])
    for value in (torch.nan, torch.inf):
        loss, grad = losses(ops, torch.tensor([[0.0, value], [1.0, 2.0]]), targets)
        assert loss.isnan() and grad[0].isnan().all() and grad[1].isfinite().all()
    assert losses(ops, torch.zeros(2, 3), torch.tensor([-100, -100]))[0].isnan()  # as in torch


@pytest.mark.parametrize("target", [-1, 3])
def test_a_target_beyond_the_classes(target: int, ops: Any) -> None:
    with pytest.raises(RuntimeError, match="beyond the classes"):
        losses(ops, torch.zeros(2, 3), torch.tensor([0, target]))


def test_targets_have_to_fit(ops: Any) -> None:
    for outputs, targets in ((torch.zeros(2, 3), torch.zeros(3)), (torch.zeros(2, 3), torch.zeros(2))):
        with pytest.raises(RuntimeError, match="fit the outputs"):
            losses(ops, outputs, targets)
    with pytest.raises(RuntimeError, match="matrices of floats"):
        losses(ops, torch.zeros(2, 3).double(), torch.zeros(2, dtype=torch.int64))
