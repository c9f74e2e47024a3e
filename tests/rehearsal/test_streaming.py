"""Steps on samples from the host are replayed, and the host waits for none of them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from fastlocal.executors.cuda_graphs import GraphedExecutor
from fastlocal.executors.stacked import StackedExecutor
from tests.helpers import small_models
from tests.rehearsal.conftest import Rehearsal
from tests.rehearsal.test_device_faults import NEEDS
from tests.training.test_loop_equivalences import run


@pytest.mark.parametrize("graph", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_samples_from_the_host_reach_the_device(
    graph: bool, tmp_path: Path, rehearsed: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a wait within a step but that for a step long before it."""
    values: dict[str, Any] = {"precision": "fp32", "executor": "stacked", "momentum": 0.9, "epochs": 4, "nw": 1}
    values |= {"source": "torch", "tune_seconds": 0.0, "step1": 6, "chunk": 3, "cuda_graph": graph}
    values |= {"label_noise": True, "noise_p": 0.3}
    data, within = small_models.images(), []
    kind = GraphedExecutor if graph else StackedExecutor
    run_round = kind.run_round

    def watched(self: Any, *given: Any) -> Any:
        seen = len(device.events)
        result = run_round(self, *given)
        within.append(Counter(f"{kind} {what}" for kind, what in device.events[seen:]))
        return result

    monkeypatch.setattr(kind, "run_round", watched)
    with rehearsed() as device:
        loop = run(tmp_path / "cuda", small_models.make("groupnorm"), data, device="cuda", **values)
        ours = loop.global_model.flat_params.cpu()
    assert len(within) >= 4 and (device.count("graph") > 0) == graph
    for counts in within[-2:]:
        host = {event: count for event, count in counts.items() if not event.startswith("launch")}
        assert host == {"h2d queued _to_copy": 12, "wait event.synchronize": 6}
        assert counts["launch graph"] == 6 * graph
    values["cuda_graph"] = None
    theirs = run(tmp_path / "cpu", small_models.make("groupnorm"), data, **values)
    torch.testing.assert_close(ours, theirs.global_model.flat_params, rtol=1e-4, atol=1e-5)


def test_batches_that_wait_on_a_device_are_planned() -> None:
    waiting = dataclasses.replace(NEEDS, streamed=1000)
    assert waiting.total(64) - NEEDS.total(64) == 64_000
