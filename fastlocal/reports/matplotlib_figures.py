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
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from .clients import ClientPlot
from .plot_data import COLOURS, HeatMap, LinePlot, Plot
from .statistics import evenly

INK, GRID = "#010203", "#040506"
"""Colours that a page replaces by its own."""
ON_PAGE = {INK: "var(--ink)", GRID: "var(--grid)"}
SIZE, WIDE_SIZE = (4.4, 2.9), (6.4, 4.2)
"""Inches: on a page, where the legend is text beside the plot, and by itself."""
DODGE, ROOM = 2.5, 0.08
"""Points between the intervals of lines at the same place, and share of an axis beyond its first and last value."""
MAX_TICKS, MAX_NUMBERS = 8, 100


def page_svg(plot: Plot) -> str:
    """Return the plot as an <svg> element whose text and axes take the colours --ink and --grid of the page."""
    svg = _draw(plot, INK, GRID, on_page=True)
    body = svg[svg.index("<svg") : svg.rindex("</svg>")].partition(">")[2]
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None, "matplotlib gives every figure a viewBox"
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    for colour, variable in ON_PAGE.items():
        body = body.replace(colour, variable)
    head = f'<svg role="img" aria-label="{escape(plot.title)}" {box[0]} xmlns:xlink="http://www.w3.org/1999/xlink">'
    return f"{head}{body}</svg>"


def file_svg(plot: Plot) -> bytes:
    """Return the plot as an SVG file with its title and legend, on white."""
    return _draw(plot, "#1c2024", "#d5d9de", on_page=False).encode()


def _draw(plot: Plot, ink: str, grid: str, on_page: bool) -> str:
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": plot.name,
        "text.parse_math": False,  # a field's value may hold a dollar sign
        "axes.unicode_minus": False,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "none" if on_page else "#ffffff",
        "font.size": 8.5,
        "grid.color": grid,
        "grid.linewidth": 0.6,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=SIZE if on_page else WIDE_SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        if isinstance(plot, ClientPlot):
            _draw_clients(figure, plot)
        else:
            axes = figure.subplots()
            axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
            if isinstance(plot, HeatMap):
                _draw_map(figure, axes, plot)
            else:
                _draw_lines(axes, plot)
        if not on_page:
            figure.axes[0].set_title(plot.title, loc="left")
            if isinstance(plot, LinePlot) and len(plot.lines) > 1:
                more = f"and {plot.left_out} more" if plot.left_out else None
                figure.legend(loc="outside lower left", ncols=2, frameon=False, title=more, alignment="left")
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _draw_lines(axes: Any, plot: LinePlot) -> None:
    for number, line in enumerate(plot.lines):
        colour = line.colour
        means = [point.mean for point in line.points]
        lows = [point.mean if point.low is None else point.low for point in line.points]
        highs = [point.mean if point.high is None else point.high for point in line.points]
        marked = range(len(means)) if plot.dots else _lone_points(means)
        shift = DODGE * (number - (len(plot.lines) - 1) / 2) if plot.dots else 0.0
        moved = axes.transData + ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
        style = {"color": colour, "linewidth": 1.5, "marker": "o", "markersize": 4, "markevery": list(marked)}
        axes.plot(line.x, means, label=line.label, transform=moved, **style)
        for place in marked:
            ends = [lows[place], highs[place]]
            axes.plot([line.x[place]] * 2, ends, color=colour, linewidth=1.2, transform=moved)
        if not plot.dots and any(point.low is not None for point in line.points):
            axes.fill_between(line.x, lows, highs, color=colour, alpha=0.2, linewidth=0)
    axes.grid(True)
    if plot.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(*plot.y_limits)
    if plot.dots:
        _set_ticks(axes, plot)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=MAX_TICKS, integer=True, min_n_ticks=1))


def _set_ticks(axes: Any, plot: LinePlot) -> None:
    """Put ticks at the values of the field, and room for the shifted lines beside the first and the last."""
    places = sorted({place for line in plot.lines for place in line.x})
    first, last = places[0], places[-1]
    if plot.log_x:
        axes.set_xscale("log")
        room = (last / first) ** ROOM
        axes.set_xlim(first / room, last * room)
    else:
        axes.set_xlim(first - ROOM * (last - first), last + ROOM * (last - first))
    shown = evenly(places, MAX_TICKS)
    axes.set_xticks(shown, [f"{place:g}" if plot.ticks is None else _short(plot.ticks[int(place)]) for place in shown])
    axes.xaxis.set_minor_locator(NullLocator())


def _lone_points(values: Sequence[float]) -> list[int]:
    """Return the places of finite values beside which a line has no other."""
    known = [False, *map(math.isfinite, values), False]
    return [place for place in range(len(values)) if known[place + 1] and not (known[place] or known[place + 2])]


def _draw_map(figure: Figure, axes: Any, plot: HeatMap) -> None:
    cmap = "viridis_r" if plot.low_is_good else "viridis"
    image = axes.pcolormesh(plot.cells, cmap=cmap, edgecolors="face", linewidth=0.2)
    columns, rows = (evenly(range(len(names)), MAX_TICKS) for names in (plot.x, plot.y))
    axes.set_xticks([column + 0.5 for column in columns], [_short(plot.x[column]) for column in columns])
    axes.set_yticks([row + 0.5 for row in rows], [_short(plot.y[row]) for row in rows])
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes)
    if len(plot.x) * len(plot.y) > MAX_NUMBERS or len(plot.x) > 2 * MAX_TICKS:
        return
    for row, values in enumerate(plot.cells):
        for column, value in enumerate(values):
            if math.isfinite(value):
                brightness = 1 - image.norm(value) if plot.low_is_good else image.norm(value)
                colour, size = "#ffffff" if brightness < 0.45 else "#000000", 7.5 if len(plot.x) < MAX_TICKS else 6
                place = (column + 0.5, row + 0.5)
                axes.text(*place, f"{value:.4g}", ha="center", va="center", color=colour, fontsize=size)


def _draw_clients(figure: Figure, plot: ClientPlot) -> None:
    """Draw the sizes, and beside them the shares of labels where they are known."""
    axes = list(figure.subplots(1, 2 if plot.shares else 1, squeeze=False)[0])
    axes[0].plot(plot.ranks, plot.sizes, drawstyle="steps-mid", color=COLOURS[0])
    axes[0].set(xlabel="clients, largest first", ylabel="samples")
    axes[0].set_ylim(bottom=0)
    axes[0].grid(True)
    if plot.shares:
        image = axes[1].pcolormesh(plot.shares, cmap="viridis", vmin=0, edgecolors="face", linewidth=0.2)
        axes[1].set(xlabel="client", ylabel="label")
        columns, rows = evenly(range(len(plot.clients)), 5), evenly(range(len(plot.labels)), 10)
        axes[1].set_xticks([column + 0.5 for column in columns], [_short(plot.clients[column]) for column in columns])
        axes[1].set_yticks([row + 0.5 for row in rows], [_short(plot.labels[row]) for row in rows])
        axes[1].tick_params(length=0)
        figure.colorbar(image, ax=axes[1], label="share of the client's samples")


def _short(text: str) -> str:
    return text if len(text) <= 14 else f"{text[:6]}...{text[-6:]}"
