"""Picture of a partition: labels by client, and sizes. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fastlocal.common.atomic_file import write_atomically

from .arrays import as_labels
from .partition import Partition

MAX_SHOWN = 100
"""Clients whose labels are shown; of more, evenly spaced ones."""


def draw(parts: Partition, labels: Any, path: Path, title: str) -> None:
    """Draw the labels of clients as a matrix of shares, and the sizes of all clients in descending order.

    Args:
        parts: The partition.
        labels: Labels of the data set, integers [samples], or None.
        path: File to write; its suffix is its format.
        title: Title of the picture.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, 2 if labels is not None else 1, squeeze=False)[0])
    figure.suptitle(title)
    if labels is not None:
        _draw_labels(figure, axes[0], parts, labels)
    sizes = np.sort(parts.sizes)[::-1]
    axes[-1].plot(np.arange(1, len(sizes) + 1), sizes, drawstyle="steps-mid")
    axes[-1].set(xlabel="clients, largest first", ylabel="samples", title="sizes")
    axes[-1].set_ylim(bottom=0)
    axes[-1].grid(alpha=0.3)

    def write(file: BinaryIO) -> None:
        with matplotlib.rc_context({"svg.hashsalt": "fastlocal"}):
            figure.savefig(file, format=path.suffix[1:], dpi=120)

    write_atomically(path, write)


def _draw_labels(figure: Figure, axes: Any, parts: Partition, labels: Any) -> None:
    present, numbers = np.unique(as_labels(labels), return_inverse=True)
    shown = np.unique(np.linspace(0, parts.clients - 1, min(parts.clients, MAX_SHOWN)).astype(np.int64))
    counts = [np.bincount(numbers[parts.samples_of(int(client))], minlength=len(present)) for client in shown]
    shares = np.stack(counts).T / parts.sizes[shown]
    image = axes.imshow(shares, aspect="auto", interpolation="nearest", origin="lower", cmap="viridis", vmin=0)
    of_all = "" if len(shown) == parts.clients else f" ({len(shown)} of {parts.clients:,})"
    axes.set(xlabel=f"client{of_all}", ylabel="label", title="share of each label")
    ticks = np.unique(np.linspace(0, len(shown) - 1, min(len(shown), 6)).astype(np.int64))
    axes.set_xticks(ticks, [f"{shown[tick]}" for tick in ticks])
    places = np.unique(np.linspace(0, len(present) - 1, min(len(present), 10)).astype(np.int64))
    axes.set_yticks(places, [f"{present[place]}" for place in places])
    figure.colorbar(image, ax=axes)
