"""Algorithms against plain loops over clients, written from their equations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlocal
from fastlocal.checkpoint.state_file import read_state_file
from tests.helpers.plain_algorithms import Rules, gradient_weight, train
from tests.helpers.plain_federated import Federation, server_of

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(150, 6, generator=GENERATOR, dtype=torch.float64)
TARGETS = torch.randint(0, 4, (150,), generator=GENERATOR)
PARTS = fastlocal.partition.dirichlet(TARGETS, clients=9, alpha=0.6, seed=3, min_client_size=1)
OWNED = [PARTS.samples_of(client).tolist() for client in range(9)]


def start() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def run(directory: Path, **settings: Any) -> Tensor:
    data = (INPUTS, TARGETS)
    fixed: dict[str, Any] = {"batch_size": 4, "lr": 0.1, "rounds": 4, "momentum": 0.9, "seed": 5, "save_every": 1}
    settings = fixed | {"partition": PARTS, "precision": "fp64", "executor": "stacked"} | settings
    if "local_epochs" not in settings:
        settings = {"local_steps": 3} | settings
    result = fastlocal.train(start(), data, data, directory=directory, progress=False, **settings)
    return nn.utils.parameters_to_vector(result.model.parameters())


WORK: dict[str, dict[str, Any]] = {
    "cohort": {"clients": 3},
    "everybody": {"clients": 9, "client_weights": "uniform", "momentum": 0.0},
    "epochs": {"clients": 5, "local_epochs": 1.0, "last_batch": "partial", "stragglers": 0.4},
    "clipped": {"clients": 4, "clip_norm": 0.3, "clients_drop": 0.4},
}
CASES: list[tuple[Rules, str]] = [
    (Rules("fedprox", prox_mu=0.7), "cohort"),
    (Rules("fedprox", prox_mu=0.3, correction_at="step", nesterov=True, wd=0.01), "epochs"),
    (Rules("scaffold"), "cohort"),
    (Rules("scaffold"), "everybody"),
    (Rules("scaffold", correction_at="step", wd=0.01), "epochs"),
    (Rules("scaffold", nesterov=True), "clipped"),
    (Rules("fednova"), "epochs"),
    (Rules("fednova", nesterov=True, prox_mu=0.4), "epochs"),
    (Rules("fednova", prox_mu=0.4, correction_at="step"), "epochs"),
    (Rules("feddyn", feddyn_alpha=0.2), "cohort"),
    (Rules("feddyn", feddyn_alpha=0.2), "everybody"),
    (Rules("feddyn", feddyn_alpha=0.1, correction_at="step", wd=0.01), "epochs"),
]


def settings_of(rules: Rules) -> dict[str, Any]:
    given = dataclasses.asdict(rules)
    unset = dataclasses.asdict(Rules(rules.algorithm))
    named = {key: value for key, value in given.items() if value != unset[key] and key != "wd"}
    return {"algorithm": rules.algorithm, "weight_decay": rules.wd, **named}


@pytest.mark.parametrize(("rules", "work"), CASES, ids=[f"{rules.algorithm} {work}" for rules, work in CASES])
def test_as_a_loop_over_clients(tmp_path: Path, rules: Rules, work: str) -> None:
    """By stacked and looped steps, in chunks."""
    server = server_of("sgd", lr=0.8) if rules.algorithm == "scaffold" else server_of("none")
    state = "keep" if work == "everybody" and rules.algorithm != "fednova" and WORK[work].get("momentum") else "reset"
    plan = Federation(OWNED, client_state=state, **_told(WORK[work]))
    expected = train(start(), INPUTS, TARGETS, plan, rules, server)
    extra = {"server_optimizer": "sgd", "server_lr": 0.8} if rules.algorithm == "scaffold" else {}
    threads = [("threaded", 2)] if rules.algorithm == "fednova" and not rules.prox_mu else []
    for executor, chunk in (("stacked", None), ("looped", 2), *threads):
        given = {**settings_of(rules), **WORK[work], **extra, "executor": executor, "chunk": chunk}
        torch.testing.assert_close(run(tmp_path / executor, **given), expected, rtol=0, atol=1e-10)


def _told(work: dict[str, Any]) -> dict[str, Any]:
    everybody = {"client_epochs": "continue"} if work["clients"] == len(OWNED) else {}
    return work | everybody


def test_fednova_weighs_as_the_paper() -> None:
    """Heavy-ball momentum r at one rate e: e [K - r (1 - r^K) / (1 - r)] / (1 - r); a <- a (1 - e mu) + 1."""
    r, rate = 0.7, 0.1
    for steps in (1, 2, 9):
        closed = rate * (steps - r * (1 - r**steps) / (1 - r)) / (1 - r)
        assert gradient_weight(steps, rate, Rules("fednova"), r) == pytest.approx(closed, rel=1e-12)
        a = 0.0
        for _ in range(steps):
            a = a * (1 - rate * 0.5) + 1
        assert gradient_weight(steps, rate, Rules("fednova", prox_mu=0.5), 0.0) == pytest.approx(rate * a, rel=1e-12)


class Prox(fastlocal.Algorithm):
    def gradient(self, grads: Tensor, rows: Tensor, start: Tensor, state: fastlocal.AlgorithmState) -> Tensor:
        return grads + 0.7 * (rows - start)


class Scaffold(fastlocal.Algorithm):
    """SCAFFOLD as a user may write it."""

    def init(self, start: Tensor) -> fastlocal.AlgorithmState:
        zero = torch.zeros_like(start)
        return fastlocal.AlgorithmState(clients={"c": zero}, server={"c": zero}, sums={"c": zero})

    def gradient(self, grads: Tensor, rows: Tensor, start: Tensor, state: fastlocal.AlgorithmState) -> Tensor:
        return grads + state.server["c"] - state.clients["c"]

    def finish(self, rows: Tensor, start: Tensor, state: fastlocal.AlgorithmState) -> dict[str, Tensor]:
        assert state.work is not None
        change = (start - rows) / state.work.rate_sums[:, None] - state.server["c"]
        state.clients["c"] += change
        return {"c": change}

    def server(self, row: Tensor, update: Tensor, state: fastlocal.AlgorithmState) -> Tensor:
        assert state.work is not None
        state.server["c"] = state.server["c"] + state.sums["c"] / state.work.population
        return row + update


class Counts(fastlocal.Algorithm):
    """State that is replaced, added and that grows, and a start that is overwritten."""

    def init(self, start: Tensor) -> fastlocal.AlgorithmState:
        return fastlocal.AlgorithmState(clients={"rounds": torch.zeros((), dtype=torch.int64)})

    def finish(self, rows: Tensor, start: Tensor, state: fastlocal.AlgorithmState) -> None:
        state.clients["rounds"] = state.clients["rounds"] + 1

    def server(self, row: Tensor, update: Tensor, state: fastlocal.AlgorithmState) -> Tensor:
        norms = state.server.get("norms", torch.zeros(0, dtype=torch.float64))
        state.server["norms"] = torch.cat([norms, update.norm()[None]])
        return row.add_(update * len(state.server["norms"]))


def test_state_that_is_replaced_or_added(tmp_path: Path) -> None:
    """It is saved, and a method may overwrite the start that it gets, from which a server optimizer steps."""
    settings = {"clients": 9, "algorithm": Counts(), "server_optimizer": "sgd", "server_lr": 0.5}
    whole = run(tmp_path / "whole", **settings)
    run(tmp_path / "two", **settings, rounds=2)
    assert torch.equal(run(tmp_path / "two", **settings, resume=True), whole)
    tensors = read_state_file(tmp_path / "two" / "resume.pt").tensors
    assert tensors["of clients algorithm rounds"].tolist() == [4] * 9
    assert tensors["algorithm norms"].shape == (4,)
    assert not torch.equal(run(tmp_path / "mean", **(settings | {"server_lr": 1.0})), whole)
    with pytest.raises(ValueError, match="the run's algorithm is Counts, not Scaffold"):
        run(tmp_path / "two", **(settings | {"algorithm": Scaffold()}), rounds=5, resume=True)


@pytest.mark.parametrize(("own", "optimizer"), [(Prox, "sgd"), (Prox, "adamw"), (Scaffold, "sgd")])
@pytest.mark.parametrize("executor", ["stacked", "looped"])
def test_ones_own_algorithm(tmp_path: Path, own: type[fastlocal.Algorithm], optimizer: str, executor: str) -> None:
    settings = {"clients": 4, "executor": executor, "chunk": 3, "clip_norm": 0.5, "local_epochs": 1.0}
    if optimizer == "adamw":
        settings |= {"client_optimizer": "adamw", "momentum": 0.0, "lr": 0.01, "weight_decay": 0.1}
    found = run(tmp_path / "own", algorithm=own(), **settings)
    built_in = {"algorithm": "fedprox", "prox_mu": 0.7} if own is Prox else {"algorithm": "scaffold"}
    torch.testing.assert_close(found, run(tmp_path / "built in", **built_in, **settings), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rules", [Rules("scaffold"), Rules("feddyn", feddyn_alpha=0.1)], ids=str)
def test_a_continued_run_ends_as_an_uninterrupted_one(tmp_path: Path, rules: Rules) -> None:
    given = {"clients": 4, "chunk": 2, **settings_of(rules)}
    whole = run(tmp_path / "whole", **given)
    run(tmp_path / "two", **given, rounds=2)
    assert torch.equal(run(tmp_path / "two", **given, resume=True), whole)
