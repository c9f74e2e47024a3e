"""Flags and measured tables in the documentation are those of the sources and of bench/results."""

from __future__ import annotations

import pytest

from bench.common import read_rows
from fastlocal.runs import fusions
from tests.docs.counted_tables import PATH
from tests.docs.markdown_tables import BLOCK, fill, table
from tests.docs.pages import ROOT
from tests.docs.regenerate import TABLES, WITH_TABLES, pages


@pytest.mark.parametrize("name", ["docs/flags.md", *WITH_TABLES])
def test_the_page_is_what_the_sources_say(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == pages()[name], "python -m tests.docs.regenerate writes it"


def test_every_table_is_on_a_page() -> None:
    shown = {found[1] for name in WITH_TABLES for found in BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))}
    assert shown == set(TABLES)


def test_the_fusions_that_a_profile_prints_are_those_of_the_counted_model() -> None:
    (counted,) = (row for row in read_rows(PATH) if row["model"] == "torchvision.resnet18")
    parts = (part.partition(" ") for part in counted["fused"].split("; "))
    printed = fusions.table({name: int(number) for number, _, name in parts})
    assert f"```text\n{printed}\n```" in (ROOT / "docs" / "profiling.md").read_text(encoding="utf-8")


def test_a_changed_number_is_seen() -> None:
    page = "a\n<!-- table: x -->\n\n| 1 |\n\n<!-- end of table -->\nb\n"
    assert fill(page, {"x": "| 2 |\n"}) == "a\n<!-- table: x -->\n\n| 2 |\n\n<!-- end of table -->\nb\n"
    with pytest.raises(KeyError):
        fill(page, {})


def test_a_bar_in_a_cell_is_escaped() -> None:
    assert table(("a", ">b"), [("x|y", "")]) == "| a | b |\n| --- | --: |\n| x\\|y | |\n"
