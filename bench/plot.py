"""Figure of throughput.csv: ratio to the reference over clients, a panel for each model, batch and precision.

    python -m bench.plot [--folder bench/results/cpu] [--batch 8]

Writes throughput.png beside the table. Needs matplotlib: pip install fastlocal[bench].
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from bench.common import Row, device_folder, read_rows
from bench.loops import OWN_PREFIX

Points = list[tuple[int, float]]


def panels(rows: Sequence[Row], batch: str | None) -> dict[tuple[str, str, str], dict[str, Points]]:
    """Return the points of each variant by model, batch and precision, where there are several numbers of clients.

    Args:
        rows: Rows of throughput.csv.
        batch: Samples per client and step; None takes all.
    """
    lines_of: dict[tuple[str, str, str], dict[str, Points]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["ratio"] and batch in (None, row["batch"]) and not row.get("population"):
            lines = lines_of[row["model"], row["batch"], row["precision"]]
            lines[row["variant"]].append((int(row["clients"]), float(row["ratio"])))
    return {key: lines for key, lines in lines_of.items() if any(len(points) > 1 for points in lines.values())}


def draw(lines_of: dict[tuple[str, str, str], dict[str, Points]], path: Path) -> None:
    """Draw the panels into a file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(lines_of), figsize=(3.4 * len(lines_of), 3.4), squeeze=False)
    for axis, ((model, batch, precision), lines) in zip(axes[0], lines_of.items(), strict=True):
        for variant, points in lines.items():
            own = variant.startswith(OWN_PREFIX)
            style = {"linewidth": 2.4, "marker": "o"} if own else {"linewidth": 1.2, "linestyle": "--", "marker": "."}
            axis.plot(*zip(*sorted(points), strict=True), label=variant, **style)
        axis.set(xlabel="clients", title=f"{model}, batch {batch}, {precision}")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("times as fast as the loop")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize="small", frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the figure; return 1 where the table has nothing to draw."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=device_folder(), help="folder of throughput.csv")
    parser.add_argument("--batch", help="draw only this batch size")
    options = parser.parse_args(arguments)
    lines_of = panels(read_rows(options.folder / "throughput.csv"), options.batch)
    if not lines_of:
        return 1
    draw(lines_of, options.folder / "throughput.png")
    print(options.folder / "throughput.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
