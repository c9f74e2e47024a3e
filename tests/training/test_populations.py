"""Runs whose clients own their samples, against a plain loop over clients."""

from __future__ import annotations

import json
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
PARTS = fastlocal.partition.dirichlet(TARGETS, clients=9, alpha=0.6, seed=3, min_client_size=1)
OWNED = [PARTS.samples_of(client).tolist() for client in range(9)]
AVAILABLE = [[0, 2, 4, 6, 8], [1, 3], [5, 6, 7, 8]]
WEIGHTS = [1.0 + client / 3 for client in range(9)]
HUGE = [4.5e307 * weight for weight in WEIGHTS]


def start() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def run(directory: Path, **settings: Any) -> tuple[torch.Tensor, list[float]]:
    data = (INPUTS, TARGETS)
    fixed: dict[str, Any] = {"batch_size": 4, "lr": 0.1, "local_steps": 3, "rounds": 4, "momentum": 0.9, "seed": 5}
    settings = fixed | {"partition": PARTS, "precision": "fp64", "executor": "stacked"} | settings
    result = fastlocal.train(start(), data, data, directory=directory, progress=False, **settings)
    return nn.utils.parameters_to_vector(result.model.parameters()), [row["train_loss"] for row in result.history]


PLANS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "everybody": ({"clients": 9}, {"client_state": "keep", "client_epochs": "continue"}),
    "uniform": ({"clients": 3}, {}),
    "kept": ({"clients": 4, "client_state": "keep", "client_epochs": "continue"},) * 2,
    "averaged": ({"clients": 4, "client_state": "average", "client_weights": "uniform"},) * 2,
    "replacement": ({"clients": 6, "cohort_sampling": "replacement", "client_state": "average"},) * 2,
    "weighted": ({"clients": 5, "cohort_sampling": "weighted"}, {"client_weights": "uniform"}),
    "cyclic": ({"clients": 4, "cohort_sampling": "cyclic", "clients_drop": 0.4},) * 2,
    "available": ({"clients": 3}, {"available": AVAILABLE, "client_weights": WEIGHTS}),
    "adamw, everybody": ({"clients": 9}, {"client_state": "keep", "client_epochs": "continue"}),
    "adamw": ({"clients": 4, "clip_norm": 0.3, "noise_p": 0.3},) * 2,
    "adamw, kept": ({"clients": 4, "client_state": "keep", "client_epochs": "continue"},) * 2,
    "adamw, averaged": ({"clients": 4, "client_state": "average"},) * 2,
    "nobody": ({"clients": 2, "clients_drop": 0.9},) * 2,
}
"""Settings, and what the plain loop has to be told beside them."""
ADAMW: dict[str, Any] = {"client_optimizer": "adamw", "momentum": 0.0, "beta1": 0.8, "beta2": 0.95, "adam_eps": 1e-4}
ADAMW |= {"weight_decay": 0.1, "lr": 0.02}


@pytest.mark.parametrize("name", PLANS)
def test_as_a_loop_over_clients(tmp_path: Path, name: str) -> None:
    settings, told = PLANS[name]
    extra: dict[str, Any] = {}
    executors: list[tuple[str, int | None]] = [("stacked", None), ("looped", 2), ("threaded", 3)]
    if name.startswith("adamw"):
        settings, told, executors = settings | ADAMW, told | ADAMW, executors[:2]
        extra = {"label_noise": "noise_p" in settings}
    if name == "available":
        (tmp_path / "can.json").write_text(json.dumps(AVAILABLE))
        (tmp_path / "weights.json").write_text(json.dumps(HUGE))  # their sum is no float
        extra = {"cohort_sampling": str(tmp_path / "can.json"), "client_weights": str(tmp_path / "weights.json")}
    expected, losses = train(start(), INPUTS, TARGETS, Federation(OWNED, **settings | told), server_of("none"))
    for executor, chunk in executors:
        found, history = run(tmp_path / executor, executor=executor, chunk=chunk, **settings, **extra)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        assert history == pytest.approx(losses, abs=1e-10)


SERVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {"lr": 0.7}),
    "momentum": ("momentum", {"lr": 0.8, "momentum": 0.6}),
    "nesterov": ("nesterov", {"lr": 0.7, "momentum": 0.9}),
    "slowmo": ("slowmo", {"lr": 0.9, "momentum": 0.5}),
    "adam": ("adam", {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}),
    "adam as others": (
        "adam",
        {"lr": 0.1, "beta1": 0.8, "beta2": 0.9, "tau": 1e-2, "accumulator": 0.0, "bias_correction": True},
    ),
    "yogi": ("yogi", {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3, "accumulator": 1e-6}),
    "adagrad": ("adagrad", {"lr": 0.1, "beta1": 0.0, "tau": 1e-3}),
}


@pytest.mark.parametrize("name", SERVERS)
def test_server_optimizers_as_their_equations(tmp_path: Path, name: str) -> None:
    optimizer, settings = SERVERS[name]
    plan = Federation(OWNED, clients=3, factor=lambda number: 1 - (number - 1) / 4)
    expected, _ = train(start(), INPUTS, TARGETS, plan, server_of(optimizer, **settings))
    given = {f"server_{key}": value for key, value in settings.items()}
    found, _ = run(tmp_path, clients=3, server_optimizer=optimizer, lr_schedule="linear", **given)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["sgd", "slowmo"])
def test_a_server_that_goes_all_the_way_takes_the_mean(tmp_path: Path, name: str) -> None:
    """With shared samples too: rate 1 without momentum is plain Local SGD."""
    settings = {"partition": None, "clients": 4}
    plain, _ = run(tmp_path / "plain", **settings)
    extra = {"server_momentum": 0.0} if name == "slowmo" else {}
    found, _ = run(tmp_path / name, server_optimizer=name, server_lr=1.0, **settings, **extra)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-14)


def test_samples_that_come_client_by_client(tmp_path: Path) -> None:
    pairs = [(INPUTS[mine], TARGETS[mine]) for mine in OWNED]
    order = [sample for mine in OWNED for sample in mine]
    expected, _ = run(tmp_path / "partition", clients=3)
    settings: dict[str, Any] = {"batch_size": 4, "lr": 0.1, "local_steps": 3, "rounds": 4, "momentum": 0.9, "seed": 5}
    for number, train_on in enumerate((pairs, [torch.utils.data.TensorDataset(*pair) for pair in pairs])):
        result = fastlocal.train(
            start(),
            fastlocal.per_client(train_on),
            (INPUTS[order], TARGETS[order]),
            clients=3,
            directory=tmp_path / str(number),
            progress=False,
            precision="fp64",
            executor="stacked",
            nw=0,
            **settings,
        )
        found = nn.utils.parameters_to_vector(result.model.parameters())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
