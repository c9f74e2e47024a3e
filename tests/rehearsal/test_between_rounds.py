"""Between two rounds the host waits for a GPU once for each chunk, with all that it can do ahead already done."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from fastlocal.common.readback import Readback
from fastlocal.config.schema import RunConfig
from fastlocal.data.sample_streams import Streams
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.params.losses import cross_entropy
from fastlocal.runs.build import build_run
from fastlocal.runs.run import train
from fastlocal.training.chunk_results import PendingResults
from tests.helpers import small_models
from tests.rehearsal.conftest import Rehearsal
from tests.rehearsal.test_whole_runs import Rounds
from tests.training.test_loop_equivalences import run

RUN: dict[str, Any] = {
    **{"dataset": "python", "batch_size": 4, "total_batch_size": 20, "chunk": 3, "step1": 2, "rounds": 6},
    **{"start_lr": None, "client_lr": 0.1, "momentum": 0.9, "eval_freq1": 10**6, "seed": 3, "executor": "stacked"},
    **{"tune_seconds": 0.0, "precision": "fp32", "device": "cuda"},
}
CASES: dict[str, dict[str, Any]] = {
    "momenta on the host": {"partition": "iid", "client_state": "keep", "algorithm": "scaffold"},
    "cohorts": {"partition": "quantity", "population": 10, "server_optimizer": "adam", "algorithm": "fedprox"},
    "unequal": {"partition": "quantity", "population": 10, "local_epochs": 1.0, "step1": 1, "algorithm": "fednova"},
}
ALLOWED = {"launch", "h2d queued", "d2h queued", "wait"}


def trained(case: str, folder: Path, rehearsed: Rehearsal) -> list[Counter[str]]:
    """Train a case and return the events of its rounds."""
    config = RunConfig().with_values(**{**RUN, **CASES[case], "log_pth": str(folder)})
    with rehearsed() as device:
        rounds = Rounds(device)
        ready = build_run(
            config, small_models.images(), lambda: small_models.make("groupnorm"), cross_entropy, model_flag="model"
        )
        train(ready, overwrite=False, make_loggers=lambda path: [rounds])
    return rounds.counts


def refused(counts: Counter[str]) -> list[str]:
    """Events of a round of two chunks for which the host waits, beside that for their results."""
    kinds = {event.rpartition(" ")[0] for event in counts} - ALLOWED
    waits = {event: number for event, number in counts.items() if event.startswith("wait ")}
    return [*sorted(kinds), *(event for event in waits if waits != {"wait event.synchronize": 2})]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param("momenta on the host", marks=pytest.mark.slow),
        "cohorts",
        pytest.param("unequal", marks=pytest.mark.slow),
    ],
)
def test_the_host_waits_once_for_each_chunk(case: str, tmp_path: Path, rehearsed: Rehearsal) -> None:
    counts = trained(case, tmp_path, rehearsed)
    steady = [found for found in counts[2:] if found["wait synchronize"] == 0]  # without a capture of other rows
    assert len(steady) >= 3
    for found in steady:
        assert not refused(found) and found["launch graph"] >= 2 and found["d2h queued copy"] >= 6


def test_another_read_of_the_host_is_found(
    tmp_path: Path, rehearsed: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = PendingResults.wait

    def waits_twice(self: PendingResults, *given: Any) -> Any:
        self._params.mean().item()
        return wait(self, *given)

    monkeypatch.setattr(PendingResults, "wait", waits_twice)
    assert all(refused(found) for found in trained("cohorts", tmp_path, rehearsed)[2:])


def test_the_next_round_is_planned_while_this_one_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for owner, name in ((Streams, "sample_ids"), (Readback, "wait"), (StackedExecutor, "run_round")):
        method = getattr(owner, name)

        def noted(self: Any, *given: Any, method: Any = method, name: str = name) -> Any:
            order.append(name)
            return method(self, *given)

        monkeypatch.setattr(owner, name, noted)
    run(tmp_path, small_models.make("groupnorm"), small_models.images(), executor="stacked", chunk=3, momentum=0.9)
    rounds = order[order.index("wait") :]  # the probe and the trial come before
    after = [following for this, following in itertools.pairwise(rounds) if this == "wait"]
    assert after == ["run_round"] * 11 and rounds.count("sample_ids") == 10


def test_values_are_not_read_before_they_have_come(rehearsed: Rehearsal) -> None:
    with rehearsed():
        pending = Readback(torch.ones(3, device="cuda"))
        assert pending._values[0].isnan().all()
        assert pending.wait()[0].tolist() == [1, 1, 1]
