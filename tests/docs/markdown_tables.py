"""Markdown tables, and the blocks of a page that are made from data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end of table -->)", flags=re.DOTALL)
"""A block: its opening comment, the name in it, the text between, and the closing comment."""


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table. A column whose name begins with ">" is aligned to the right."""
    names = [name.lstrip(">") for name in columns]
    rules = ["--:" if name.startswith(">") else "---" for name in columns]
    lines = [names, rules, *([cell(value) for value in row] for row in rows)]
    return "\n".join(re.sub(" +", " ", f"| {' | '.join(line)} |") for line in lines) + "\n"


def cell(value: object) -> str:
    """Return the text of a value within a table, where a bar would end the cell."""
    return str(value).replace("|", "\\|")


def fill(page: str, blocks: Mapping[str, str]) -> str:
    """Return the page with the text of each block replaced.

    Raises:
        KeyError: The page names a block that does not exist.
    """
    return BLOCK.sub(lambda found: f"{found[1]}\n{blocks[found[2]]}\n{found[4]}", page)
