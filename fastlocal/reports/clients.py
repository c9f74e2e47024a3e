"""Which client has how many samples and which labels, from the partition.npz of run directories."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlocal.common.errors import UsageError, one_line
from fastlocal.common.interrupts import defer_signals
from fastlocal.data.partition import Partition

from .run_records import RunRecord
from .statistics import evenly
from .sweep_records import show

MAX_PARTITIONS = 4
"""Partitions that a report shows at most."""
MAX_RANKS, MAX_CLIENTS, MAX_LABELS = 400, 60, 100
"""Clients whose sizes, and clients and labels whose shares are shown; of more, evenly spaced ones."""
FILE = "partition.npz"


@dataclass(frozen=True)
class ClientPlot:
    """A partition.

    Attributes:
        name: Name of the plot.
        title: The partition and its run.
        ranks: Ranks of clients by their size, 1 for the largest.
        sizes: Their samples.
        clients: Clients whose labels are shown, "client 3" say.
        labels: Labels, by rows of `shares`.
        shares: Share of each label in the samples of each shown client, [labels][clients]; empty without labels.
        note: Why labels are missing; else "".
    """

    name: str
    title: str
    ranks: Sequence[int]
    sizes: Sequence[int]
    clients: Sequence[str] = ()
    labels: Sequence[str] = ()
    shares: Sequence[Sequence[float]] = ()
    note: str = ""


def client_plots(runs: Sequence[RunRecord]) -> tuple[list[ClientPlot], int]:
    """Return the first `MAX_PARTITIONS` different partitions of runs, and the number of further ones."""
    found: dict[str, RunRecord] = {}
    for run in runs:
        path = run.directory / FILE
        if path.is_file():
            with path.open("rb") as file:
                found.setdefault(hashlib.sha256(file.read()).hexdigest(), run)
    plots = [_plot(run, place) for place, run in enumerate(list(found.values())[:MAX_PARTITIONS])]
    return [plot for plot in plots if plot is not None], max(len(found) - MAX_PARTITIONS, 0)


def _plot(run: RunRecord, place: int) -> ClientPlot | None:
    try:
        parts = Partition.load(run.directory / FILE)
    except UsageError:
        return None
    kind = show(parts.meta.get("procedure") or run.settings.get("partition", "partition"))
    name, title = f"clients_{place}", f"{kind}: {parts.clients} clients of {run.name}"
    ranks = evenly(range(1, parts.clients + 1), MAX_RANKS)
    sizes = np.sort(parts.sizes)[::-1][np.array(ranks) - 1].tolist()
    try:
        labels = _labels(run.settings)
        parts.check(len(labels), labels, flag=FILE)
    except UsageError as error:
        return ClientPlot(name, title, ranks, sizes, note=f"Labels by client are not shown: {one_line(error)}")
    present, numbers = np.unique(labels, return_inverse=True)
    clients, rows = evenly(range(parts.clients), MAX_CLIENTS), evenly(range(len(present)), MAX_LABELS)
    counts = [np.bincount(numbers[parts.samples_of(client)], minlength=len(present)) for client in clients]
    shares = (np.stack(counts).T / parts.sizes[clients])[rows]
    names = [parts.client_ids[client] if parts.client_ids else str(client) for client in clients]
    return ClientPlot(name, title, ranks, sizes, names, [str(present[row]) for row in rows], shares.tolist())


def _labels(settings: Mapping[str, Any]) -> Any:
    """Read the labels of a run's training samples, from files that are on this machine; raises UsageError without."""
    with defer_signals():
        from fastlocal.data import datasets

    def message(text: str) -> None:
        if text.startswith("downloading"):
            raise UsageError("the data set is not on this machine")

    dataset = str(settings.get("dataset"))
    spec = datasets.DatasetSpec(
        name=dataset,
        data_pth=settings.get("data_pth"),
        train_pth=settings.get("train_pth"),
        val_pth=settings.get("val_pth"),
        seed=int(settings.get("seed") or 0),
        workers=1,
        image_size=None,
        message=message,
        lazy=True,
        client_column=settings.get("client_column"),
        label_column=settings.get("label_column"),
    )
    try:
        targets = datasets.read(spec).train.targets
    except OSError as error:
        raise UsageError(f"--dataset {dataset}: cannot be read ({one_line(error)})") from None
    if targets is None or targets.dim() != 1 or targets.is_floating_point():
        raise UsageError("the targets are no class labels")
    return targets.numpy()

