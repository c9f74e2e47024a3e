"""Directories of runs and sweeps, written without training."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastlocal.config.schema import RunConfig

Row = Mapping[str, Any]


def rows_of(final: float, rounds: Sequence[int] = (1, 2, 4)) -> list[Row]:
    """Rows whose accuracy rises to `final` in the last round, and whose loss is what is missing from 1."""
    reached = [final * math.sqrt(each / rounds[-1]) for each in rounds]
    return [
        {"epoch": each / 2, "comm_round": each, "iter": each * 5, "val_acc1": value, "val_loss": 1 - value}
        for each, value in zip(rounds, reached, strict=True)
    ]


def write_run(directory: Path, rows: Sequence[Row], **values: Any) -> Path:
    """A run directory: config.json with these values, and metrics.jsonl."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(RunConfig().with_values(log_pth=str(directory), **values).to_json())
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def write_sweep(
    directory: Path,
    fields: Mapping[str, Sequence[Any]],
    rows: Callable[[Mapping[str, Any]], Sequence[Row]],
    status: Callable[[Mapping[str, Any]], str] = lambda values: "done",
    name: str = "rates",
) -> Path:
    """A sweep of all combinations of the fields; runs that wait have no directory."""
    directory.mkdir(parents=True)
    listed = []
    for combination in itertools.product(*fields.values()):
        values = dict(zip(fields, combination, strict=True))
        run, state = ",".join(f"{field}={value}" for field, value in values.items()), status(values)
        if state != "waiting":
            write_run(directory / run, rows(values), **values)
        message = "the loss is <not> finite" if state == "failed" else None
        entry = {"name": run, "values": values, "status": state, "message": message}
        listed.append(entry)
    command = ["quickstart", "--over", "seed=0,1"]
    stored = {"version": 1, "name": name, "command": command, "fields": fields, "runs": listed}
    (directory / "sweep.json").write_text(json.dumps(stored))
    return directory
