"""Figure of peers_rounds.csv: bars of how many times as fast as the loop over modules, a panel for each workload."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.common import Row
from bench.peers.systems import OWN

COLUMNS = 4


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the panels into a file; nothing where no row has a ratio."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured = [row for row in rows if row["ratio"]]
    workloads = list(dict.fromkeys(row["workload"] for row in measured))
    if not workloads:
        return
    lines = -(-len(workloads) // COLUMNS)
    figure, axes = plt.subplots(lines, COLUMNS, figsize=(3.3 * COLUMNS, 2.6 * lines), squeeze=False)
    for axis in axes.flat[len(workloads) :]:
        axis.set_visible(False)
    for axis, workload in zip(axes.flat, workloads, strict=False):
        bars = [(row["system"], float(row["ratio"])) for row in measured if row["workload"] == workload]
        bars.sort(key=lambda bar: bar[1])
        colours = ["tab:orange" if name == OWN else "tab:gray" for name, _ in bars]
        drawn = axis.barh([name for name, _ in bars], [ratio for _, ratio in bars], color=colours)
        axis.bar_label(drawn, labels=[f"{ratio:.2g}" for _, ratio in bars], padding=2, fontsize="x-small")
        axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
        axis.set_title(workload, fontsize="medium")
        axis.tick_params(labelsize="x-small")
        axis.margins(x=0.15)
    figure.supxlabel("times as fast as a loop over modules, by client-step", fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
