"""Parts of a report page. Every text is escaped here, and nowhere else."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from .plot_data import Line
from .statistics import Summary
from .sweep_records import show

TALL, LONG = 20, 40
"""Rows from which a table scrolls by itself, and characters from which a text breaks into lines."""


class Cell(NamedTuple):
    """A table cell whose text is not what it is sorted by.

    Attributes:
        text: What is shown.
        key: Number that it is sorted by, or None: an empty cell, which is sorted last.
        good: Whether it is marked.
    """

    text: str
    key: float | None
    good: bool = False


def page(title: str, sections: Iterable[str]) -> str:
    """Return a whole page, which loads nothing and runs no script but its own."""
    style, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{style}</style>",
            "</head>",
            "<body>",
            *sections,
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def heading(text: str) -> str:
    """Return the page's heading."""
    return f"<h1>{escape(text)}</h1>"


def section(title: str, *parts: str) -> str:
    """Return a section; empty if all its parts are."""
    held = [part for part in parts if part]
    return "\n".join([f"<section><h2>{escape(title)}</h2>", *held, "</section>"]) if held else ""


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f"<p{_class(kind)}>{escape(text)}</p>"


def details(title: str, *parts: str) -> str:
    """Return parts that are folded up until a reader opens them."""
    return "\n".join([f"<details><summary>{escape(title)}</summary>", *parts, "</details>"])


def figure(caption: str, svg: str, below: str = "") -> str:
    """Return a plot with its caption; `svg` and `below` are HTML."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}{below}</figure>"


def figures(parts: Sequence[str]) -> str:
    """Return plots side by side as the window allows."""
    return '<div class="plots">\n' + "\n".join(parts) + "\n</div>" if parts else ""


def legend(lines: Iterable[Line], left_out: int = 0) -> str:
    """Return the colours and labels of lines."""
    entries = [f'<li><i style="background:{line.colour}"></i>{escape(line.label)}</li>' for line in lines]
    more = [f'<li class="faint">and {left_out} more</li>'] if left_out else []
    return f'<ul class="legend">{"".join([*entries, *more])}</ul>'


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table that sorts by a click on a column's head, and scrolls in a box of its own.

    Args:
        caption: What it holds, for readers that hear the page.
        columns: Heads.
        rows: Texts, numbers, None for empty cells, or Cells.
    """
    if not rows:
        return ""
    numeric = [all(not isinstance(row[i], str | list) for row in rows) for i in range(len(columns))]
    heads = (
        f'<th scope="col"{_class("" if number else "text")}><button type="button">{escape(name)}</button></th>'
        for name, number in zip(columns, numeric, strict=True)
    )
    kind = "scroll tall" if len(rows) > TALL else "scroll"
    return "\n".join(
        [
            f'<div class="{kind}" tabindex="0" role="region" aria-label="{escape(caption)}"><table>',
            f"<thead><tr>{''.join(heads)}</tr></thead>",
            "<tbody>",
            *("<tr>" + "".join(map(_cell, row, numeric)) + "</tr>" for row in rows),
            "</tbody></table></div>",
        ]
    )


def _cell(value: Any, numeric: bool) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, Cell):
        key = "" if value.key is None else f' data-value="{value.key!r}"'
        return f"<td{_class('good' if value.good else '')}{key}>{escape(value.text)}</td>"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<td data-value="{float(value)!r}"{_class("" if numeric else "text")}>{number(value)}</td>'
    text = show(value)
    return f"<td{_class('long' if len(text) > LONG else 'text')}>{escape(text)}</td>"


def number(value: float) -> str:
    """Return a number for reading: integers whole, others with five digits."""
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.5g}"


def mean_cell(found: Summary | None, good: bool = False) -> Cell | None:
    """Return mean +- half of the interval, sorted by the mean."""
    if found is None:
        return None
    half = "" if found.low is None or found.high is None else f" ± {(found.high - found.low) / 2:.2g}"
    return Cell(f"{found.mean:.4g}{half}" + (" (best)" if good else ""), found.mean, good)


def definitions(values: Mapping[str, Any]) -> str:
    """Return names and values as a table of two columns."""
    return table("settings", ("field", "value"), [(name, show(value)) for name, value in values.items()])


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
