"""Interrupted and continued equals never interrupted with every source, and with workers that share the clients."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastlocal.data.images.arrays import ArrayImages
from fastlocal.data.types import AnySplit, DataSet, Split
from tests.data import sources
from tests.helpers import passes, small_models
from tests.helpers.interrupted import Ticking, continued, run
from tests.helpers.run_files import difference, run_files

UNEQUAL = {"partition": "quantity", "step1": 1, "local_epochs": 0.8, "last_batch": "partial", "stragglers": 0.3}
KINDS = [
    ("torch", [7, 18, 29]),
    ("torch, unequal", [7, 18, 29]),
    pytest.param("ffcv", [17], marks=pytest.mark.needs("ffcv")),  # which compiles its pipeline in every process
    pytest.param("dali", [7, 18, 29], marks=pytest.mark.needs("nvidia.dali")),
]
OWNED = {"partition": "iid", "population": 7, "rounds": 6, "client_state": "keep", "client_epochs": "continue"}
HARD = {"momentum": 0.9, "label_noise": True, "noise_p": 0.3, "aug": True, "bn_batches": 2}


def module() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    layers = nn.Conv2d(3, 4, 3, stride=4), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10)
    return nn.Sequential(*layers)


def data(kind: str, folder: Path) -> DataSet:
    """60 training images of which the ffcv source has a .beton file, 17 test images."""
    halves: list[AnySplit] = []
    for split in (sources.cifar(), Split(sources.cifar().inputs[:17], sources.cifar().targets[:17])):
        where = folder / f"beton{len(halves)}"
        where.mkdir()
        path = sources.beton(where, ArrayImages(split.inputs), "raw") if kind == "ffcv" else where
        halves.append(sources.as_read_by(kind, split, path))
    return DataSet("images", *halves, classes=10, mean=sources.MEAN, std=sources.STD)


@pytest.mark.parametrize(("kind", "moments"), KINDS)
def test_every_source(kind: str, moments: list[int], tmp_path: Path) -> None:
    """A cohort's own samples, the same from each source."""
    kind, *unequal = kind.split(", ")
    images, values = data(kind, tmp_path), {**HARD, **OWNED, "source": kind, "nw": 2, "prefetch": 3}
    values |= UNEQUAL if unequal else {}
    decoded = DataSet("images", sources.cifar(), Split(sources.cifar().inputs[:17], sources.cifar().targets[:17]), 10,
                      sources.MEAN, sources.STD)  # fmt: skip
    run(tmp_path / "resident", module(), decoded, **values | {"source": "resident"})
    run(tmp_path / "undisturbed", Ticking(module()), images, **values)
    wanted = run_files(tmp_path / "undisturbed")
    assert wanted["steps.jsonl"] == run_files(tmp_path / "resident")["steps.jsonl"]
    assert sum(moments) < passes.count() and (wanted["steps.jsonl"].count(b"\n") == 60 or unequal)
    assert continued(tmp_path / "run", module, images, moments, **values) == len(moments)
    assert difference(run_files(tmp_path / "run"), wanted) == ""


def test_clients_on_threads(tmp_path: Path) -> None:
    """Signals come whenever it may be, as steps of workers run without Python."""
    values: dict[str, Any] = {**HARD, "executor": "threaded", "workers": 2, "chunk": 2, "epochs": 30, "eval_freq1": 4}
    images, draw, stops = small_models.images(), random.Random(0), 0
    run(tmp_path / "undisturbed", small_models.make("batchnorm"), images, **values)
    wanted = run_files(tmp_path / "undisturbed")
    rows = wanted["metrics.jsonl"].count(b"\n")
    for number in range(3):
        folder = tmp_path / str(number)
        for moment in [*sorted(draw.sample(range(1, rows), 2)), None]:
            over = threading.Event()
            signals = threading.Thread(target=interrupt, args=(folder, moment, draw.uniform(0, 0.01), over))
            signals.start()
            try:
                run(folder, small_models.make("batchnorm"), images, resume=True, **values)
                over.set()
                signals.join()  # a signal that is on its way comes here at the latest
            except KeyboardInterrupt:
                stops += 1
        assert difference(run_files(folder), wanted) == ""
    assert stops >= 3


def interrupt(folder: Path, rows: int | None, seconds: float, over: threading.Event) -> None:
    """Ctrl-C, so many seconds after a run was evaluated that often, unless it is over or to go on."""
    while rows is not None and not over.wait(0.001):
        log = folder / "metrics.jsonl"
        if log.exists() and log.read_bytes().count(b"\n") >= rows:
            if not over.wait(seconds):
                os.kill(os.getpid(), signal.SIGINT)
            return
