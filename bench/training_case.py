"""A training case: a model, clients, batch, local steps and precision, as a configuration of fastlocal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastlocal.config.recipes import default
from fastlocal.config.schema import RunConfig

LEARNING_RATE, MOMENTUM = 0.01, 0.9
NEVER = 2**31 - 1
PRECISIONS = ("fp64", "fp32", "tf32", "bf16")
LOCAL_STEPS = {"mlp": 8, "cnn": 4, "resnet20_gn": 2, "resnet56": 2}
"""Local steps of a round where a case does not name them, by model."""
CASE = re.compile(r"(\w+):([1-9]\d*)(?:of([1-9]\d*))?x([1-9]\d*)(?:x([1-9]\d*))?")


@dataclass(frozen=True)
class TrainingCase:
    """Clients that train on coloured blobs of 3 x 32 x 32 pixels, without augmentation.

    Samples are drawn with replacement from all, or, with a `population`, belong to its clients in equal shares, of whom
    `clients` take part in a round.
    """

    model: str
    clients: int
    batch: int
    local_steps: int
    precision: str = "fp32"
    momentum: float = MOMENTUM
    population: int | None = None

    @property
    def name(self) -> str:
        """Name in tables, such as `resnet20_gn 8 x 32, H=2, bf16`."""
        clients = f"{self.clients} of {self.population}" if self.population else f"{self.clients}"
        return f"{self.model} {clients} x {self.batch}, H={self.local_steps}, {self.precision}"

    def config(self, directory: Path, **settings: Any) -> RunConfig:
        """Return the configuration of an endless run without evaluations.

        Args:
            directory: Run directory.
            **settings: Fields of RunConfig that replace those of the case.
        """
        frequencies = {f"{name}{phase}": NEVER for name in ("eval_freq", "save_freq") for phase in (1, 2, 3)}
        values: dict[str, Any] = {
            "dataset": "synthetic",
            "model": self.model,
            "batch_size": self.batch,
            "total_batch_size": self.clients * self.batch,
            "replacement": self.population is None,
            "aug": False,
            "start_lr": None,
            "client_lr": LEARNING_RATE,
            "momentum": self.momentum,
            "precision": self.precision,
            "rounds": NEVER // self.local_steps,
            **{f"step{phase}": self.local_steps for phase in (1, 2, 3)},
            **{f"decay{phase}": NEVER for phase in (1, 2, 3)},
            **frequencies,
            "save_every": 0,
            "log_pth": str(directory),
        }
        if self.population is not None:  # equal weights, as the baselines average
            values |= {"partition": "iid", "population": self.population, "client_weights": "uniform"}
        return default().with_values(**(values | settings))


CPU_TARGETS = (
    TrainingCase("mlp", 64, 16, 8),
    TrainingCase("cnn", 32, 16, 4),
    TrainingCase("resnet20_gn", 8, 32, 2),
    TrainingCase("resnet20_gn", 8, 32, 2, "bf16"),
)
GPU_TARGETS = (
    TrainingCase("resnet56", 32, 128, 2, "tf32"),
    TrainingCase("resnet56", 32, 128, 2, "bf16"),
    TrainingCase("resnet20_gn", 512, 8, 2, "tf32"),
    *(TrainingCase("resnet20_gn", clients, 32, 2, "tf32") for clients in (128, 2048)),
)
"""Cases for which the project has a target throughput."""


def parse_cases(words: Sequence[str], precision: str) -> list[TrainingCase]:
    """Parse `targets`, or cases as MODEL:CLIENTS[ofPOPULATION]xBATCH[xSTEPS], as words or joined by commas.

    Args:
        words: Words of the command line.
        precision: Precision of the cases; the targets have their own.

    Raises:
        ValueError: A word is no case.
    """
    cases: list[TrainingCase] = []
    for word in ",".join(words).split(","):
        found = CASE.fullmatch(word)
        model, *sizes = found.groups() if found else ("",)
        if word == "targets":
            cases += GPU_TARGETS if torch.cuda.is_available() else CPU_TARGETS
        elif model in LOCAL_STEPS:
            clients, population, batch, steps = (None if size is None else int(size) for size in sizes)
            assert clients is not None and batch is not None, "CASE requires both"
            steps = steps or LOCAL_STEPS[model]
            cases.append(TrainingCase(model, clients, batch, steps, precision, population=population))
        else:
            models = ", ".join(LOCAL_STEPS)
            form = "MODEL:CLIENTS[ofPOPULATION]xBATCH[xSTEPS]"
            raise ValueError(f"{word!r}: give targets or {form}, where MODEL is one of {models}")
    return cases
