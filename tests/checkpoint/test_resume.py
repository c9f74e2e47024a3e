"""Interrupted and continued equals never interrupted, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import passes, small_models
from tests.helpers.interrupted import Ticking, continued, run
from tests.helpers.run_files import difference, run_files


class Dropping(nn.Module):
    """Dropout before BatchNorm: training and re-estimation both draw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = small_models.Convolutions("batch")

    def forward(self, x: Any) -> Any:
        return self.inner(nn.functional.dropout(x, 0.2, self.training))


HARD = {"momentum": 0.9, "nesterov": True, "label_noise": True, "noise_p": 0.3, "aug": True}
WARM = {"warm_up": True, "warmup_epochs": 1, "client_lr": None, "start_lr": 0.02, "decay1": 2, "gamma": 0.5, "step2": 3}
OWNED = {"partition": "dirichlet", "alpha": 1.0, "population": 8, "rounds": 6, "momentum": 0.9, "aug": True}
ADAMW = OWNED | {"client_optimizer": "adamw", "momentum": 0.0, "local_epochs": 0.7, "step1": 1, "rounds": 7}
QSR = {"sync": "qsr", "qsr_alpha": 0.1, "lr_schedule": "cosine", "post_local_from": 1, "save_minutes": 0.0, "chunk": 2}
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "batchnorm, everything": (lambda: small_models.make("batchnorm"), HARD | WARM | {"eval_on_start": True}),
    "replacement": (lambda: small_models.make("groupnorm"), HARD | {"replacement": True, "chunk": 1}),
    "stacked": (lambda: small_models.make("groupnorm"), HARD | {"executor": "stacked", "precision": "fp64"}),
    "by epochs, steps left over": (
        lambda: small_models.make("batchnorm"),
        WARM | {"schedule": "epochs", "momentum": 0.5, "step1": 5, "step2": 5, "decay1": 1, "decay2": 3, "epochs": 4},
    ),
    "seldom evaluated": (Dropping, {"eval_freq1": 4, "save_every": 1, "momentum": 0.9}),
    "own samples, kept state": (
        lambda: small_models.make("batchnorm"),
        OWNED
        | {"client_state": "keep", "client_epochs": "continue", "server_optimizer": "adam", "lr_schedule": "cosine"},
    ),
    "own samples, state kept on disk": (
        lambda: small_models.make("batchnorm"),
        OWNED | {"client_state": "keep", "client_store": "disk", "save_minutes": 0.0, "chunk": 1},
    ),
    "steps left over, state kept on disk": (
        lambda: small_models.make("groupnorm"),
        {"momentum": 0.5, "step1": 5, "step2": 5, "client_store": "disk"},
    ),
    "own samples, averaged state": (
        lambda: small_models.make("groupnorm"),
        OWNED | {"client_state": "average", "server_optimizer": "slowmo", "executor": "stacked", "precision": "fp64"},
    ),
    "adamw, own samples, kept state": (lambda: small_models.make("batchnorm"), ADAMW | {"client_state": "keep"}),
    "adamw, averaged, stacked": (
        lambda: small_models.make("groupnorm"),
        ADAMW | {"client_state": "average", "executor": "stacked", "precision": "fp64"},
    ),
    "rounds of growing length": (lambda: small_models.make("batchnorm"), HARD | QSR),
    "unequal clients": (
        lambda: small_models.make("groupnorm"),
        OWNED
        | {"local_epochs": 0.7, "step1": 1, "last_batch": "partial", "stragglers": 0.4, "rounds": 5}
        | {"label_noise": True, "client_state": "keep", "client_epochs": "continue"}
        | {"executor": "stacked", "precision": "fp64"},
    ),
    "never evaluated": (lambda: small_models.make("odd"), {"eval_freq1": 1000, "save_every": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_stopped_anywhere(name: str, tmp_path: Path) -> None:
    make, values = CASES[name]
    run(tmp_path / "undisturbed", Ticking(make()), small_models.images(), **values)
    taken = passes.count()
    wanted = run_files(tmp_path / "undisturbed")
    assert "resume.pt" in wanted and (wanted["steps.jsonl"].count(b"\n") == 60) == ("local_epochs" not in values)
    start, stride = ((6, 8), (9, 5))[list(CASES).index(name) % 2]
    moments = list(range(start, taken, stride))  # each process gets through so many forward passes more than the last
    stops = continued(tmp_path / "stopped", make, small_models.images(), moments, **values)
    assert difference(run_files(tmp_path / "stopped"), wanted) == "", f"stopped at {moments}"
    assert stops >= 3
