"""Figures of what bench.throughput and bench.scaling measured.

    python -m bench.plot [--folder bench/results/cpu] [--batch 8]

Writes throughput.png (ratio to the reference's loop over clients, a panel per model) and scaling.png (cost of a
client-step). Needs matplotlib: pip install fastlocal[bench].
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.case import RESULTS, device_name
from bench.tables import Row, read

DPI = 90


def pyplot() -> Any:
    """matplotlib's, without a display; imported here so that the other benches need none."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def ratios(rows: Sequence[Row], path: Path, batch: str | None) -> bool:
    """Times as fast as the reference over clients, one panel per model, batch and precision with several counts.

    batch: samples per client and step, where only these are drawn
    """
    panels: dict[tuple[str, str, str], dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["ratio"] and batch in (None, row["batch"]):
            place = panels[row["model"], row["batch"], row["precision"]]
            place[row["variant"]].append((int(row["clients"]), float(row["ratio"])))
    several = {key: lines for key, lines in panels.items() if any(len(points) > 1 for points in lines.values())}
    if not several:
        return False
    plt = pyplot()
    figure, axes = plt.subplots(1, len(several), figsize=(3.4 * len(several), 3.4), squeeze=False)
    for axis, ((model, samples, precision), lines) in zip(axes[0], several.items(), strict=True):
        for name, points in lines.items():
            ours = name.startswith("fastlocal")
            style = {"linewidth": 2.4, "marker": "o"} if ours else {"linewidth": 1.2, "linestyle": "--", "marker": "."}
            axis.plot(*zip(*sorted(points), strict=True), label=name, **style)
        axis.set(xscale="log", xlabel="clients", title=f"{model}, batch {samples}, {precision}")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("times as fast as the loop")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize="small", frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return True


def costs(rows: Sequence[Row], path: Path) -> bool:
    """Milliseconds per client-step over clients."""
    lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        name = f"{row['model']}, batch {row['batch']}, H={row['local_steps']}"
        lines[name].append((int(row["clients"]), float(row["ms_per_client_step"])))
    lines = defaultdict(list, {name: points for name, points in lines.items() if len(points) > 1})
    if not lines:
        return False
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(5, 3.6))
    for name, points in lines.items():
        axis.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set(xlabel="clients", ylabel="ms per client-step", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=RESULTS / device_name(), help="where the CSV files are")
    parser.add_argument("--batch", help="draw the ratios of this batch size alone")
    asked = parser.parse_args(arguments)
    throughput, scaling = (asked.folder / f"{name}.png" for name in ("throughput", "scaling"))
    drawn = [
        path
        for path, done in (
            (throughput, ratios(read(throughput.with_suffix(".csv")), throughput, asked.batch)),
            (scaling, costs(read(scaling.with_suffix(".csv")), scaling)),
        )
        if done
    ]
    print(*drawn, sep="\n")
    return 0 if drawn else 1


if __name__ == "__main__":
    sys.exit(main())
