"""What the ops on the clients' rows promise beyond their formula: frozen rows, clipping, and any chunking."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastlocal import kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ("reference", "triton")
ODD = [0.0, -0.0, float("inf"), -float("inf"), 1e-42, -3e38, 1.0]


def rows(clients: int, n_params: int, seed: int) -> Tensor:
    return torch.randn(clients, n_params, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ["client_sgd", "client_adamw", "client_sgd_mean"])
def test_rows_of_inactive_clients_keep_every_bit(op: str, backend: str) -> None:
    clients, n_params = 4, 7 * 19
    active = torch.tensor([True, False, False, True], device=DEVICE)
    params, momentum, grads = (rows(clients, n_params, seed) for seed in range(3))
    for buffer in (params, momentum):
        buffer[1:3] = torch.tensor(ODD, device=DEVICE).repeat(19)
    rest: dict[str, Any] = {"weight_decay": 0.1, "active": active}
    buffers = {"params": params, "momentum": momentum}
    if op == "client_adamw":  # one of the two has not taken a step
        buffers["square"] = momentum.abs()
        steps = torch.tensor([1.0, 0.0, 2.5, 3.0], dtype=torch.float64, device=DEVICE)
        rest |= {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "steps": steps}
    else:
        rest |= {"mu": 0.9, "nesterov": True}
    if op != "client_sgd_mean":
        rest["shadow"] = shadow = params.to(torch.bfloat16)
        shadow[1:3] = 7.0
    else:
        rest |= {"total": torch.zeros(n_params, device=DEVICE), "weight": 0.25}
    before = [buffer.clone() for buffer in buffers.values()]
    rates, mask = torch.full((clients,), 0.1, device=DEVICE), torch.ones(n_params, device=DEVICE)
    kernels.get(op, backend, DEVICE)(**buffers, grads=grads, learning_rate=rates, decay_mask=mask, **rest)
    for buffer, old in zip(buffers.values(), before, strict=True):
        same = (buffer.view(torch.int32) == old.view(torch.int32)).all(dim=1)
        assert same.tolist() == [False, True, True, False]
    if op == "client_adamw":
        assert steps.tolist() == [2.0, 0.0, 2.5, 4.0]
    if op != "client_sgd_mean":
        assert (shadow[1:3] == 7.0).all()
        # the interpreter cuts where a GPU rounds
        torch.testing.assert_close(shadow[0].float(), params[0], rtol=2**-7, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_clipping_is_that_of_torch(backend: str) -> None:
    clients, n_params, largest = 3, 300, 2.5
    params, grads = rows(clients, n_params, 0), rows(clients, n_params, 1)
    grads[1] *= 1e-3
    expected = []
    for row, grad in zip(params, grads, strict=True):
        parameter = torch.nn.Parameter(row.clone())
        parameter.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_([parameter], largest)
        torch.optim.SGD([parameter], lr=0.3, weight_decay=0.1).step()
        expected.append(parameter.detach())
    norms = kernels.get("client_norm", backend, DEVICE)(grads)
    kernels.get("client_sgd", backend, DEVICE)(
        params,
        None,
        grads,
        torch.full((clients,), 0.3, device=DEVICE),
        torch.ones(n_params, device=DEVICE),
        mu=0.0,
        weight_decay=0.1,
        nesterov=False,
        grad_scale=(largest / (norms + 1e-6)).clamp(max=1.0),
    )
    torch.testing.assert_close(params, torch.stack(expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_last_step_with_the_mean_is_the_step_then_the_mean(backend: str) -> None:
    clients, n_params = 5, 257
    arguments = {"mu": 0.9, "weight_decay": 0.1, "nesterov": False}
    rates, mask = torch.rand(clients).to(DEVICE), torch.ones(n_params, device=DEVICE)
    buffers = [rows(clients, n_params, seed) for seed in range(3)]
    apart = [buffer.clone() for buffer in buffers]
    total = torch.zeros(n_params, dtype=torch.float64, device=DEVICE)
    kernels.get("client_sgd_mean", backend, DEVICE)(*buffers, rates, mask, total, 1 / clients, **arguments)
    kernels.get("client_sgd", backend, DEVICE)(*apart, rates, mask, **arguments)
    assert torch.equal(buffers[0], apart[0]) and torch.equal(buffers[1], apart[1])
    torch.testing.assert_close(total, apart[0].double().mean(dim=0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_the_mean_of_chunks_is_the_mean_and_goes_back_to_every_row(chunk: int, backend: str) -> None:
    params = rows(7, 129, 0)
    mean = kernels.get("client_mean", backend, DEVICE)
    total = torch.zeros(129, dtype=torch.float64, device=DEVICE)
    expected = params.double().mean(dim=0)
    parts = params.split(chunk)
    for part in parts:
        mean(part, total, 1 / 7, broadcast=part is parts[-1])
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-7)
    assert all(torch.equal(row, total.float()) for row in parts[-1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clients", [3, 7, 49])
def test_equal_rows_average_to_themselves(clients: int, backend: str) -> None:
    """To the rounding of the total's dtype, whatever 1/clients is in float32: a factor would grow with every round."""
    row = rows(1, 129, 0)
    expected, params = row[0].double(), row.repeat(clients, 1)
    total, stepped = torch.zeros_like(expected), torch.zeros_like(expected)
    kernels.get("client_mean", backend, DEVICE)(params, total, 1 / clients, broadcast=True)
    torch.testing.assert_close(total, expected, rtol=1e-14, atol=0)
    assert torch.equal(params, row.expand(clients, -1))
    rates, mask, zeros = torch.ones(clients, device=DEVICE), torch.ones(129, device=DEVICE), torch.zeros_like(params)
    kernels.get("client_sgd_mean", backend, DEVICE)(
        params, None, zeros, rates, mask, stepped, 1 / clients, mu=0.0, weight_decay=0.0, nesterov=False
    )
    torch.testing.assert_close(stepped, expected, rtol=1e-14, atol=0)
