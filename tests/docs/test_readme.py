"""What README.md says of the repository is so."""

from __future__ import annotations

import re

from tests.docs.pages import ROOT

README = ROOT / "README.md"


def section(title: str) -> str:
    text = README.read_text(encoding="utf-8")
    begin = text.index(f"## {title}\n")
    return text[begin : text.index("\n## ", begin + 1)]


def test_it_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < 200


def test_it_lists_the_rooms() -> None:
    rows = re.findall(r"^\| (`.*?) \|", section("The rooms"), flags=re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    folders = [path.parent.name for path in (ROOT / "fastlocal").glob("*/__init__.py")]
    assert sorted(listed) == sorted(set(folders) - {"kernels"})


def test_it_names_the_versions_of_the_package() -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    python, torch = re.search(r'python_requires=">=([\d.]+)"', setup), re.search(r'"torch>=([\d.]+)"', setup)
    assert python and torch
    assert f"Python {python[1]} or newer and torch {torch[1]} or newer" in section("Install")


def test_it_has_no_figure_of_a_gpu() -> None:
    assert "It has never run on a GPU" in section("Status")
