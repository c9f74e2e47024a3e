"""Communication rounds until a run is good enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fastlocal.common.errors import UsageError, nearest
from fastlocal.config.targets import Target

from .run_records import is_run, no_run_error, read_run


class WithHistory(Protocol):
    """A fastlocal.Run."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        ...


def rounds_to(
    run: WithHistory | str | Path | Sequence[Mapping[str, Any]], accuracy: float, metric: str = "val_acc1"
) -> int | None:
    """Return the communication rounds of the first evaluation that is good enough; None if none is.

    Nothing is interpolated between evaluations.

    Args:
        run: A Run, a run directory, or the lines of its metrics.jsonl.
        accuracy: The value to reach: an accuracy at least, a loss at most.
        metric: A metric of metrics.jsonl.

    Raises:
        ValueError: The directory holds no run, or no line has the metric.
    """
    rows: Sequence[Mapping[str, Any]]
    if isinstance(run, str | Path):
        directory = Path(run).expanduser()
        if not is_run(directory):
            raise no_run_error(directory, "run")
        rows = read_run(directory).rows
    else:
        rows = getattr(run, "history", run)  # type: ignore[arg-type]
    names = {name for row in rows for name in row}
    if rows and metric not in names:
        raise UsageError(f"metric {metric!r}: the run has none{nearest(metric, names)}")
    row = Target(metric, accuracy).first(rows)
    return None if row is None else int(row["comm_round"])
