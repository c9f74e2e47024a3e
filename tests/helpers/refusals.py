"""How a user's mistake on the command line ends: status 2, one line, no traceback, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.command_line import Outcome, run, train_words, tree


def train_refused(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    *words: object,
    data: Path,
    says: tuple[str, ...],
    one_line: bool = True,
    longest: int = 400,
) -> Outcome:
    """Train in `folder` with these words after those of a good run, and see it refused with nothing written."""
    before = tree(folder)
    outcome = run(capsys, *train_words(data, folder / "run"), *words)
    assert_refused(outcome, says, one_line, longest)
    assert tree(folder) == before
    return outcome


def assert_refused(outcome: Outcome, says: tuple[str, ...], one_line: bool = True, longest: int = 400) -> None:
    assert outcome.status == 2, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    for part in says:
        assert part in outcome.err
    if one_line:
        assert outcome.err.startswith("fastlocal: error: ") and outcome.err.count("\n") == 1, outcome.err
        assert len(outcome.err) < longest
