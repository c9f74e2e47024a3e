"""The plots of a sweep as SVG files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from fastlocal.common.errors import UsageError

from .plot_data import Plot, all_plots
from .sweep_records import Sweep, read_sweep
from .tables import write_bytes

FOLDER = "plots"


def write_plots(sweep_directory: Path) -> None:
    """Write the plots of a sweep, finished or not, into the folder plots of its directory.

    Raises:
        UsageError: It holds no sweep.json that can be read, or matplotlib is missing.
    """
    save_plots(read_sweep(sweep_directory), sweep_directory / FOLDER)


def save_plots(sweep: Sweep, folder: Path) -> None:
    """Write the plots as SVG files into a folder, which is made; raises UsageError without matplotlib."""
    draw, _ = load_renderer("plots")
    folder.mkdir(exist_ok=True)
    for plot in all_plots(sweep):
        write_bytes(folder / (re.sub(r"[^\w.-]", "_", plot.name) + ".svg"), draw(plot))


def load_renderer(what: str) -> tuple[Callable[[Plot], bytes], Callable[[Plot], str]]:
    """Return the functions that draw files and parts of a page.

    Args:
        what: What needs them, for the message.

    Raises:
        UsageError: matplotlib is missing.
    """
    try:
        from .matplotlib_figures import file_svg, page_svg
    except ImportError:
        raise UsageError(f"{what}: needs matplotlib; install it with pip install 'fastlocal[report]'") from None
    return file_svg, page_svg
