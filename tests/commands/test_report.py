"""fastlocal report and fastlocal compare: what they write and print, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastlocal.reports.tables import TABLES
from tests.helpers.command_line import metrics, run, train_words, tree
from tests.helpers.sweep_files import rows_of, write_run, write_sweep


@pytest.mark.needs("matplotlib")
def test_a_report_of_a_run_that_was_trained(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page, and with flags the tables and plots; the run's own directory stays as it is."""
    directory = tmp_path / "run"
    assert run(capsys, *train_words(data, directory)).status == 0
    before, value = tree(directory), metrics(directory)[-1]["val_acc1"]
    out, tables, plots = tmp_path / "page.html", tmp_path / "some" / "tables", tmp_path / "plots"
    done = run(capsys, "report", directory, "--out", out, "--tables", tables, "--plots", plots)
    assert done.status == 0 and done.out.split() == [str(tables), str(plots), str(out)], done.err
    text = out.read_text(encoding="utf-8")
    assert f"Final val_acc1: {value:.4g}, run" in text and "device cpu" in text
    assert tree(tables) == {*TABLES} and "curves_val_loss_by_comm_round.svg" in tree(plots)
    assert tree(directory) == before
    assert run(capsys, "report", directory, directory, "--out", out).status == 0, "a page is replaced"


def test_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = write_run(tmp_path / "slow", rows_of(0.9, (1, 4, 16)), start_lr=0.1, seed=3)
    fast = write_run(tmp_path / "fast", rows_of(0.8, (1, 4)), start_lr=0.2, seed=3, executor="looped")
    done = run(capsys, "compare", slow, fast, slow, "--to", "0.4")
    assert done.status == 0 and done.err == ""
    lines = [line.split() for line in done.out.splitlines() if line.strip()]
    assert lines[0] == ["setting", "slow", "fast"]
    apart = [["start_lr", "0.1", "0.2"], ["executor", "auto", "looped"]]
    assert [line for line in lines[2:] if len(line) == 3] == apart
    assert [line for line in lines if line[0] in ("slow", "fast")] == [
        ["slow", "16", "0.9000*", "0.9000*", "16", "0.1000*", "4", "2,560"],
        ["fast", "4", "0.8000", "0.8000", "4", "0.2000", "1*", "640*"],
    ]
    done = run(capsys, "compare", slow, fast, "--metric", "val_loss", "--to", "0.15")
    cells = [line.split() for line in done.out.splitlines() if line.strip().startswith(("slow", "fast"))]
    assert [row[-2:] for row in cells] == [["16", "10,240"], ["-", "-"]], "of a loss the smaller is better"


def test_a_sweep_at_work_in_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs without a row or a directory have dashes; what a name could do to a terminal it does not."""
    states = {0: "done", 1: "running", 2: "waiting", 3: "failed"}
    fields = {"seed": [0, 1, 2, 3], "model": ["[bold]mlp\x1b[2J"]}
    sweep = write_sweep(
        tmp_path / "sweep",
        fields,
        lambda values: rows_of(0.5) if values["seed"] == 0 else [],
        lambda values: states[values["seed"]],
    )
    done = run(capsys, "compare", sweep)
    assert done.status == 0 and "\x1b" not in done.out
    rows = [line.split() for line in done.out.splitlines() if line.strip().startswith("seed=") and ": " not in line]
    name = "seed={},model=[bold]mlp\\x1b[2J".format
    assert rows == [
        [name(0), "done", "4", "0.5000", "0.5000", "4", "0.5000"],
        *([name(seed), states[seed], *"-----"] for seed in (1, 2, 3)),
    ]
    assert f"{name(3)}: the loss is <not> finite" in done.out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("compare", "fastlocal compare: name run directories"),
        ("compare run nowhere", "RUN nowhere: does not exist; give a run directory"),
        ("compare empty", "RUN empty: holds no run (config.json, metrics.jsonl) and no sweep (sweep.json)"),
        ("compare run/config.json", "RUN run/config.json: is a file"),
        ("compare run --metric val_acc", "--metric val_acc: no run has it; did you mean 'val_acc1'?"),
        ("compare run --to high", "--to high: must be a number"),
        ("report", "fastlocal report: name run directories"),
        ("report empty", "RUN empty: holds no run"),
        ("report run --out run/config.json", "--out run/config.json: name a file that ends in .html or .htm"),
        ("report run --out nowhere/page.html", "--out nowhere/page.html: there is no folder nowhere"),
        ("report run --tables run/config.json", "cannot be written"),
        ("report run --title x", "unknown flag --title"),
    ],
)
def test_mistakes(
    words: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", rows_of(0.5))
    (tmp_path / "empty").mkdir()
    before = tree(tmp_path)
    done = run(capsys, *words.split())
    assert done.status == 2 and done.out == "" and problem in done.err, done.err
    assert done.err.count("\n") == 1 and tree(tmp_path) == before
