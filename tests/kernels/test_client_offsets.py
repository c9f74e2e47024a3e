"""Addresses of the clients' rows beyond 2^31 elements, from strides that are made huge."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastlocal import kernels
from tests.kernels.test_large_offsets import Addresses

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter")

CLIENTS, N_PARAMS = 5, 131


def arguments(op: str) -> dict[str, Any]:
    rows = torch.ones(CLIENTS, N_PARAMS)
    if op == "client_norm":
        return {"rows": rows}
    weight = torch.ones(CLIENTS)
    total = {"total": torch.ones(N_PARAMS, dtype=torch.float64), "weight": weight}
    if op == "client_mean":
        return {"params": rows, "broadcast": True, **total}
    step = {
        "params": rows,
        "momentum": torch.ones_like(rows),
        "grads": torch.ones_like(rows),
        "learning_rate": torch.ones(CLIENTS),
        "decay_mask": torch.ones(N_PARAMS),
        "mu": 0.9,
        "weight_decay": 0.1,
        "nesterov": True,
        "grad_scale": torch.ones(CLIENTS),
        "active": torch.ones(CLIENTS, dtype=torch.bool),
    }
    if op == "client_sgd_mean":
        return {**step, **total}
    if op == "client_adamw":
        for name in ("mu", "nesterov"):
            del step[name]
        step |= {"square": torch.ones_like(rows), "steps": torch.ones(CLIENTS, dtype=torch.float64)}
        step |= {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "drift": torch.ones_like(rows), "prox": torch.ones(CLIENTS)}
        step |= {"center": torch.ones(N_PARAMS), "weight_decay": torch.ones(CLIENTS), "shadow": rows.bfloat16()}
        return step
    factors = {"mu": torch.ones(CLIENTS), "weight_decay": torch.ones(CLIENTS)}
    return {**step, **factors, "shadow": rows.bfloat16()}


@pytest.mark.parametrize("op", ["client_sgd", "client_adamw", "client_norm", "client_mean", "client_sgd_mean"])
def test_rows(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, given = kernels.get(op, "triton", "cpu"), arguments(op)
    addresses = Addresses(monkeypatch)
    run(**given)
    assert addresses.launches == (2 if op == "client_adamw" else 1)
    addresses.check()
