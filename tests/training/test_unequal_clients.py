"""Clients of different numbers of steps, against a plain loop with a DataLoader for each client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastlocal
from tests.helpers.plain_federated import Federation, server_of, train

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(150, 6, generator=GENERATOR, dtype=torch.float64)
TARGETS = torch.randint(0, 4, (150,), generator=GENERATOR)
SIZES = [3, 11, 4, 31, 8, 14, 2, 24, 7, 12]
ORDER = torch.randperm(150, generator=GENERATOR).split([*SIZES, 150 - sum(SIZES)])[:-1]
OWNED = [part.tolist() for part in ORDER]
PARTS = fastlocal.partition.Partition.from_lists(OWNED)
"""No size leaves one sample over in batches of 4, of which BatchNorm can make nothing."""


def start(norm: bool = False) -> nn.Module:
    torch.manual_seed(1)
    first = [nn.Linear(6, 5), *([nn.BatchNorm1d(5)] if norm else []), nn.Tanh()]
    return nn.Sequential(*first, nn.Linear(5, 4)).double()


def run(directory: Path, norm: bool = False, **settings: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
    data = (INPUTS, TARGETS)
    fixed: dict[str, Any] = {"batch_size": 4, "lr": 0.1, "rounds": 3, "seed": 5, "momentum": 0.9, "partition": PARTS}
    settings = fixed | {"precision": "fp64", "executor": "stacked"} | settings
    result = fastlocal.train(start(norm), data, data, directory=directory, progress=False, **settings)
    return result.model, result.history


def row(module: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters())


PLANS: dict[str, dict[str, Any]] = {
    "fill": {"clients": 10, "local_epochs": 1.0, "client_state": "keep", "client_epochs": "continue"},
    "fill, a fraction": {"clients": 4, "local_epochs": 0.7, "clip_norm": 0.5},
    "drop": {"clients": 6, "local_epochs": 2.0, "last_batch": "drop", "client_epochs": "continue"},
    "partial": {"clients": 4, "local_epochs": 2.0, "last_batch": "partial", "norm": True},
    "partial, on and on": {
        **{"clients": 10, "local_epochs": 1.5, "last_batch": "partial", "stragglers": 0.4, "momentum": 0.5},
        **{"client_state": "keep", "client_epochs": "continue", "noise_p": 0.3, "clip_norm": 0.7},
    },
    "adamw": {
        **{"clients": 10, "local_epochs": 1.5, "last_batch": "partial", "client_state": "keep", "norm": True},
        **{"client_optimizer": "adamw", "momentum": 0.0, "weight_decay": 0.1, "lr": 0.02, "clip_norm": 0.7},
        # the bias before a norm has no gradient but rounding, which a small eps would blow up
        **{"client_epochs": "continue", "adam_eps": 1e-3},
    },
    "stragglers": {"clients": 5, "local_steps": 4, "stragglers": 0.5, "client_epochs": "continue"},
    "stragglers, averaged": {
        **{"clients": 6, "local_epochs": 1.0, "last_batch": "partial", "stragglers": 0.5, "noise_p": 0.2},
        **{"client_state": "average", "cohort_sampling": "replacement", "clients_drop": 0.2},
    },
}


@pytest.mark.parametrize("name", PLANS)
def test_as_a_loop_over_clients(tmp_path: Path, name: str) -> None:
    """By every executor, in any chunks: the model, the losses and the samples."""
    settings = dict(PLANS[name])
    norm = settings.pop("norm", False)
    plan = Federation(OWNED, rounds=3, **settings)
    expected, losses = train(start(norm), INPUTS, TARGETS, plan, server_of("none"))
    noise = settings.pop("noise_p", None)
    given = settings | ({} if noise is None else {"label_noise": True, "noise_p": noise})
    for executor, chunk in (("stacked", None), ("stacked", 3), ("looped", 2), ("threaded", 4)):
        if executor == "threaded" and plan.client_optimizer == "adamw":
            continue
        module, history = run(tmp_path / f"{executor} {chunk}", norm, executor=executor, chunk=chunk, **given)
        torch.testing.assert_close(row(module), expected, rtol=0, atol=1e-10)
        assert [line["train_loss"] for line in history] == pytest.approx(losses, abs=1e-10)
    taken = [0] * len(OWNED)
    for number, line in enumerate(history, 1):
        cohort = plan.cohort(number)
        assert line["clients"] == len(cohort)
        assert line["samples"] == sum(len(batch) for one in cohort for batch in plan.batches(one, number, taken[one]))
        for client in cohort:
            taken[client] += plan.work(client, number)
    if norm:
        counted = sum(max(plan.work(one, number) for one in plan.cohort(number)) for number in (1, 2, 3))
        estimated = 3 * (sum(SIZES) // 4)
        assert module[1].num_batches_tracked == counted + estimated  # type: ignore[index, union-attr]
