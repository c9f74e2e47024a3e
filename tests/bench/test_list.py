"""`python -m bench` lists every bench, and no command is listed that does not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import __main__ as bench_list

FOLDER = Path(bench_list.__file__).parent
CHILDREN = {"worker", "loading_readers"}
"""Programs that benches start themselves."""


def test_every_bench_is_listed_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    programs = {path.stem for path in FOLDER.glob("*.py") if '\nif __name__ == "__main__":' in path.read_text()}
    packages = {path.parent.name for path in FOLDER.glob("*/__main__.py")}
    assert bench_list.BENCHES.keys() == (programs - CHILDREN - {"__main__"}) | packages
    assert bench_list.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[:-1]] == [f"bench.{name}" for name in bench_list.BENCHES]
    assert all(len(line) <= 120 for line in lines)
