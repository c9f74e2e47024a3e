"""Plots have the right axes, gaps and limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fastlocal.reports.plot_data import axes_of, curves, heat_map, over_field
from fastlocal.reports.sweep_records import Sweep, collect
from tests.helpers.sweep_files import rows_of, write_sweep


def make_sweep(folder: Path, fields: Mapping[str, list[Any]], **changes: Any) -> Sweep:
    """A sweep whose accuracy grows with the seed."""
    rows = changes.pop("rows", lambda values: rows_of(0.5 + 0.1 * values.get("seed", 0)))
    return collect([write_sweep(folder / "sweep", fields, rows, **changes)], "RUN")


@pytest.mark.parametrize(
    ("values", "log", "ticks"),
    [
        ([0.01, 0.02, 0.04, 0.08], True, None),
        ([0.01, 0.1], True, None),
        ([0.05, 0.1], False, None),
        ([1, 2, 3], False, None),
        ([0.1, 0.0, 0.01, 0.001], False, ["0.0", "0.001", "0.01", "0.1"]),
        (["mlp", "cnn"], False, ["mlp", "cnn"]),
        ([None, 0.5], False, ["null", "0.5"]),
    ],
)
def test_the_axis_of_a_field(values: list[Any], log: bool, ticks: list[str] | None, tmp_path: Path) -> None:
    """Logarithmic where values grow by factors; 0 among such, and texts, have places side by side."""
    field = "model" if isinstance(values[0], str) else "wd" if 0.0 in values else "alpha"
    plot = over_field(make_sweep(tmp_path, {field: values}), field, "val_acc1")
    assert plot is not None and (plot.log_x, plot.ticks) == (log, ticks)
    assert len(plot.lines) == 1 and list(plot.lines[0].x) == sorted(plot.lines[0].x)


def test_lines_of_one_field_for_each_value_of_the_other(tmp_path: Path) -> None:
    fields = {"seed": [0, 1], "wd": [0.1, 0.2, 0.3], "model": ["mlp", "cnn"]}
    sweep = make_sweep(tmp_path, fields)
    plot, cells = over_field(sweep, "wd", "val_acc1"), heat_map(sweep, "val_acc1")
    assert plot is not None and [line.label for line in plot.lines] == ["model=mlp", "model=cnn"]
    assert [(point.n, point.mean) for point in plot.lines[0].points] == [(2, pytest.approx(0.55))] * 3
    assert cells is not None and (cells.y, cells.x) == (["0.1", "0.2", "0.3"], ["mlp", "cnn"])
    low, high = plot.y_limits
    assert 0 < low < 0.55 < high < 1.1, "the interval of two seeds, 0.55 +- 0.64, does not make the means a flat line"


def test_a_curve_breaks_where_a_seed_is_nan(tmp_path: Path) -> None:
    def rows(values: Mapping[str, Any]) -> list[dict[str, Any]]:
        losses = [0.5, None if values["seed"] else 0.4, 0.3]
        return [{"comm_round": place, "epoch": place, "val_loss": loss} for place, loss in enumerate(losses, 1)]

    sweep = make_sweep(tmp_path, {"seed": [0, 1]}, rows=rows)
    (line,) = curves(sweep, "val_loss").lines
    assert list(line.x) == [1, 2, 3] and [math.isnan(point.mean) for point in line.points] == [False, True, False]
    assert axes_of(sweep) == ["comm_round"]


def test_rounds_that_are_different_parts_of_an_epoch_have_both_axes(tmp_path: Path) -> None:
    def rows(values: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"comm_round": 10 // values["step1"], "epoch": 1.0, "val_loss": 1.0}]

    assert axes_of(make_sweep(tmp_path, {"step1": [1, 5]}, rows=rows)) == ["comm_round", "epoch"]
