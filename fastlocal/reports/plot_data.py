"""The numbers behind each plot of a sweep, without a drawing library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastlocal.config.targets import lower_is_better

from .clients import ClientPlot
from .run_records import RunRecord, metric_names
from .statistics import Summary, evenly, summarise
from .sweep_records import MAX_NAMED, Setting, Sweep, settings_of, show
from .tables import summary_of

COLOURS = (
    *("#3b7dd8", "#d9731a", "#2f9e69", "#d1495b", "#8f6bd1"),
    *("#a07b50", "#d463a8", "#7f8790", "#8f9a1f", "#1f9fb5"),
)
"""Colours of lines, of 3 to 1 contrast with white and with the dark ground of a page."""
MAX_LINES = len(COLOURS)
"""Lines of a plot at most."""
MAX_PLACES = 400
"""Places of a curve that are drawn; of more, evenly spaced ones, the first and the last among them."""
WIDE_RANGE = 100.0
"""Ratio of the largest to the smallest loss from which the axis is logarithmic."""


@dataclass(frozen=True)
class Line:
    """One line of a plot: its label and colour, and a summary over seeds at each place of x."""

    label: str
    colour: str
    x: Sequence[float]
    points: Sequence[Summary]


@dataclass(frozen=True)
class LinePlot:
    """Lines with intervals.

    Attributes:
        name: Name of its file, without suffix.
        title: What it shows, in a few words.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        lines: The lines.
        left_out: Lines beyond `MAX_LINES`.
        ticks: Labels of the places 0, 1, 2 ... of values that are no numbers, or None.
        log_x: Whether x is logarithmic, with ticks at the values themselves.
        dots: Whether places are marked.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    left_out: int = 0
    ticks: Sequence[str] | None = None
    log_x: bool = False
    dots: bool = False

    @property
    def log_y(self) -> bool:
        """Return True for values above 0 that span more than `WIDE_RANGE`."""
        means = [point.mean for line in self.lines for point in line.points if math.isfinite(point.mean)]
        return bool(means) and min(means) > 0 and max(means) / min(means) > WIDE_RANGE

    @property
    def y_limits(self) -> tuple[float, float]:
        """Return limits that show all means, and of intervals three quarters of the means' range beyond them at most.

        The interval of two seeds is 9 standard deviations wide on each side, beside which nothing else could be seen.
        """
        points = [point for line in self.lines for point in line.points if math.isfinite(point.mean)]
        if not points:
            return 0.0, 1.0
        low, high = min(point.mean for point in points), max(point.mean for point in points)
        if self.log_y:
            return low / 1.3, high * 1.3
        span = high - low or abs(high) or 1.0
        lowest = min(point.mean if point.low is None else point.low for point in points)
        highest = max(point.mean if point.high is None else point.high for point in points)
        return max(lowest, low - 0.75 * span) - span / 20, min(highest, high + 0.75 * span) + span / 20


@dataclass(frozen=True)
class HeatMap:
    """The mean of a metric over two fields; a cell is NaN where no run is finished."""

    name: str
    title: str
    x_label: str
    y_label: str
    x: Sequence[str]
    y: Sequence[str]
    cells: Sequence[Sequence[float]]
    low_is_good: bool


Plot = LinePlot | HeatMap | ClientPlot


def curves(sweep: Sweep, metric: str, axis: str = "comm_round") -> LinePlot:
    """Return the means of a metric over `axis`, comm_round or epoch, for the best settings.

    All plots of a sweep have the settings that are best by its first metric, in the same order.
    """
    settings = _best_first(settings_of(sweep), metric_names(sweep.runs)[0])
    lines = [_curve(setting, colour, metric, axis) for setting, colour in zip(settings, COLOURS, strict=False)]
    words = {"comm_round": "communication rounds", "epoch": "epochs"}[axis]
    name = f"curves_{metric}_by_{axis}"
    lines = [line for line in lines if line.x]
    return LinePlot(name, f"{metric} over {words}", words, metric, lines, max(len(settings) - MAX_LINES, 0))


def axes_of(sweep: Sweep) -> list[str]:
    """Return comm_round, and epoch where a round is not the same part of an epoch in all runs."""
    ratios = {
        round(run.rows[-1].get("epoch", 0) / run.rows[-1]["comm_round"], 6)
        for run in sweep.runs
        if run.rows and run.rows[-1].get("comm_round")
    }
    return ["comm_round", *(["epoch"] if len(ratios) > 1 else [])]


def over_field(sweep: Sweep, field: str, metric: str) -> LinePlot | None:
    """Return the last value of a metric over a field, a line for each setting of the other fields.

    None if the field has fewer than two values with finished runs.
    """
    values = list(sweep.fields[field])
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if numeric and 0 in values and is_log_spread([value for value in values if value]):
        values, numeric = sorted(values), False  # a logarithmic axis has no place for 0
    places = {show(value): float(value) if numeric else float(i) for i, value in enumerate(values)}
    groups: dict[str, list[tuple[float, Summary]]] = {}
    for setting in settings_of(sweep):
        found, place = summary_of(setting, metric), places.get(show(setting.values.get(field)))
        if found is not None and place is not None:
            others = {name: value for name, value in setting.values.items() if name != field}
            groups.setdefault(Setting(others).label if others else metric, []).append((place, found))
    if len({place for points in groups.values() for place, _ in points}) < 2:
        return None
    lines = []
    for colour, (label, points) in zip(COLOURS, groups.items(), strict=False):
        points.sort(key=lambda one: one[0])
        lines.append(Line(label, colour, [place for place, _ in points], [point for _, point in points]))
    return LinePlot(
        name=f"final_{metric}_by_{field}",
        title=f"final {metric} over {field}",
        x_label=field,
        y_label=metric,
        lines=lines,
        left_out=max(len(groups) - MAX_LINES, 0),
        ticks=None if numeric else list(places),
        log_x=numeric and is_log_spread(values),
        dots=True,
    )


def heat_map(sweep: Sweep, metric: str) -> HeatMap | None:
    """Return the means of a metric over the two fields of a sweep; None if it has another number of them."""
    if len(sweep.swept) != 2:
        return None
    down, across = sweep.swept
    means = {}
    for setting in settings_of(sweep):
        found = summary_of(setting, metric)
        if found is not None:
            means[show(setting.values[down]), show(setting.values[across])] = found.mean
    x, y = ([show(value) for value in sweep.fields[name]] for name in (across, down))
    if not means or min(len(x), len(y)) < 2:
        return None
    cells = [[means.get((row, column), math.nan) for column in x] for row in y]
    return HeatMap(f"map_{metric}", f"mean of final {metric}", across, down, x, y, cells, lower_is_better(metric))


def all_plots(sweep: Sweep) -> list[LinePlot | HeatMap]:
    """Return every plot of a sweep that has something to show."""
    found: list[LinePlot | HeatMap | None] = []
    metrics = metric_names(sweep.runs)
    for metric in metrics:
        found += [curves(sweep, metric, axis) for axis in axes_of(sweep)]
    for metric in (name for name in metrics if name.startswith("val_")):
        found += [over_field(sweep, field, metric) for field in sweep.swept if len(sweep.swept) <= MAX_NAMED]
        found.append(heat_map(sweep, metric))
    return [plot for plot in found if plot is not None and (isinstance(plot, HeatMap) or plot.lines)]


def is_log_spread(values: Sequence[Any]) -> bool:
    """Return True if numbers are spread by factors rather than by steps; of two, if they differ 10 times or more."""
    numbers = sorted({float(value) for value in values})
    if len(numbers) < 2 or numbers[0] <= 0 or not math.isfinite(numbers[-1]):
        return False
    if len(numbers) == 2:
        return numbers[1] >= 10 * numbers[0]
    steps = [after - before for before, after in zip(numbers, numbers[1:], strict=False)]
    factors = [math.log(after / before) for before, after in zip(numbers, numbers[1:], strict=False)]
    return numbers[-1] >= 4 * numbers[0] and _unevenness(factors) < _unevenness(steps)


def _unevenness(gaps: Sequence[float]) -> float:
    """Return the coefficient of variation."""
    mean = sum(gaps) / len(gaps)
    return math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) / mean


def _best_first(settings: Sequence[Setting], metric: str) -> list[Setting]:
    """Return the settings in the order of their means, those without a finite one last."""
    sign = 1 if lower_is_better(metric) else -1

    def rank(setting: Setting) -> float:
        found = summary_of(setting, metric)
        return sign * found.mean if found is not None and math.isfinite(found.mean) else math.inf

    return sorted(settings, key=rank)


def _curve(setting: Setting, colour: str, metric: str, axis: str) -> Line:
    """Summarise the rows of a setting's runs where they are equally far; NaN of one run makes a gap."""
    by_seed: dict[Any, RunRecord] = {}
    for run in setting.runs:
        if run.rows:
            by_seed.setdefault(run.seed, run)
    values: dict[float, list[float]] = {}
    for run in by_seed.values():
        for row in run.rows:
            if metric in row and axis in row:
                values.setdefault(row[axis], []).append(row[metric])
    places = evenly(sorted(values), MAX_PLACES)
    points = [point for point in (summarise(values[place]) for place in places) if point is not None]
    return Line(setting.label, colour, places, points)
