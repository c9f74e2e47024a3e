"""The plots of a sweep as SVG: by themselves on white, or for a page in its own colours. Needs matplotlib."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from .plot_data import HeatMap, LinePlot

COLOURS = (
    *("#3b7dd8", "#d9731a", "#2f9e69", "#d1495b", "#8f6bd1"),
    *("#a07b50", "#d463a8", "#7f8790", "#8f9a1f", "#1f9fb5"),
)
"""Colours of lines, of 3 to 1 contrast with white and with the page's dark ground."""
INK, GRID = "#010203", "#040506"
"""Colours that a page replaces by its own."""
ON_PAGE = {INK: "var(--ink)", GRID: "var(--grid)"}
SIZE, WIDE_SIZE = (4.4, 2.9), (6.4, 4.2)
"""Inches: on a page, where the legend is text beside the plot, and by itself."""
MAX_TICKS, MAX_NUMBERS = 8, 100


def page_svg(plot: LinePlot | HeatMap) -> str:
    """Return the plot as an <svg> element whose text and axes take the colours --ink and --grid of the page."""
    svg = _draw(plot, {"text": INK, "grid": GRID}, on_page=True)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)
    for colour, variable in ON_PAGE.items():
        svg = svg.replace(colour, variable)
    label = escape(f"{plot.title}", quote=True)
    head = f'<svg role="img" aria-label="{label}"'
    return re.sub(r"<svg( [^>]*?)? width=\"[^\"]*\"", lambda found: head + (found[1] or ""), svg, count=1).replace(
        " height=", " data-height=", 1
    )


def file_svg(plot: LinePlot | HeatMap) -> bytes:
    """Return the plot as an SVG file with its title and legend, on white."""
    return _draw(plot, {"text": "#1c2024", "grid": "#d5d9de"}, on_page=False).encode()


def _draw(plot: LinePlot | HeatMap, colours: dict[str, str], on_page: bool) -> str:
    text = colours["text"]
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": plot.name,
        "text.parse_math": False,  # a field's value may hold a dollar sign
        "axes.unicode_minus": False,
        "font.size": 8.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": colours["grid"],
        "grid.linewidth": 0.6,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), text),
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=SIZE if on_page else WIDE_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        if on_page:
            figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
        if isinstance(plot, HeatMap):
            _draw_map(figure, axes, plot)
        else:
            _draw_lines(axes, plot)
        if not on_page:
            axes.set_title(plot.title, loc="left")
            if isinstance(plot, LinePlot) and len(plot.lines) > 1:
                more = f"and {plot.left_out} more" if plot.left_out else None
                figure.legend(loc="outside lower left", ncols=2, frameon=False, title=more, alignment="left")
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _draw_lines(axes: Any, plot: LinePlot) -> None:
    for line, colour in zip(plot.lines, COLOURS, strict=False):
        means = [point.mean for point in line.points]
        lows = [point.mean if point.low is None else point.low for point in line.points]
        highs = [point.mean if point.high is None else point.high for point in line.points]
        marker = "o" if plot.dots or len(means) == 1 else ""
        axes.plot(line.x, means, color=colour, label=line.label, marker=marker, markersize=4, linewidth=1.5)
        if plot.dots:
            axes.vlines(line.x, lows, highs, color=colour, linewidth=1.2)
        elif any(point.low is not None for point in line.points):
            axes.fill_between(line.x, lows, highs, color=colour, alpha=0.2, linewidth=0)
    axes.grid(True)
    axes.set_axisbelow(True)
    if plot.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(*plot.y_limits)
    if plot.log_x:
        axes.set_xscale("log")
        places = _evenly(sorted({place for line in plot.lines for place in line.x}))
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.xaxis.set_minor_locator(NullLocator())
    elif plot.dots and plot.ticks is None:
        axes.set_xticks(_evenly(sorted({place for line in plot.lines for place in line.x})))
    elif plot.ticks is not None:
        places = _evenly(range(len(plot.ticks)))
        axes.set_xticks(places, [_short(plot.ticks[place]) for place in places])


def _draw_map(figure: Figure, axes: Any, plot: HeatMap) -> None:
    image = axes.pcolormesh(plot.cells, cmap="viridis_r" if plot.low_is_good else "viridis", edgecolors="face", linewidth=0.2)
    columns, rows = _evenly(range(len(plot.x))), _evenly(range(len(plot.y)))
    axes.set_xticks([column + 0.5 for column in columns], [_short(plot.x[column]) for column in columns])
    axes.set_yticks([row + 0.5 for row in rows], [_short(plot.y[row]) for row in rows])
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes)
    if len(plot.x) * len(plot.y) > MAX_NUMBERS or len(plot.x) > 2 * MAX_TICKS:
        return
    for row, values in enumerate(plot.cells):
        for column, value in enumerate(values):
            if math.isfinite(value):
                dark = (image.norm(value) > 0.4) if plot.low_is_good else (image.norm(value) < 0.6)
                style = {"color": "#ffffff" if dark else "#000000", "fontsize": 7.5 if len(plot.x) < MAX_TICKS else 6}
                axes.text(column + 0.5, row + 0.5, f"{value:.4g}", ha="center", va="center", **style)


def _evenly(places: Sequence[Any]) -> list[Any]:
    """Return at most `MAX_TICKS` of the places, the first and the last among them."""
    if len(places) <= MAX_TICKS:
        return list(places)
    return [places[round(index * (len(places) - 1) / (MAX_TICKS - 1))] for index in range(MAX_TICKS)]


def _short(text: str) -> str:
    return text if len(text) <= 14 else f"{text[:6]}...{text[-6:]}"
