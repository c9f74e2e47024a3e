"""The words of swept fields, and what is refused: one line, status 2, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastlocal.sweeps.axes import grid, parse_axis, read_runs
from fastlocal.sweeps.plan import run_name
from tests.helpers.command_line import run, tree
from tests.sweeps.test_alone_and_together import sweep_words


def values(word: str) -> list[object]:
    (name,) = {name for row in parse_axis([word], "--over") for name in row}
    return [row[name] for row in parse_axis([word], "--over")]


def test_lists_and_ranges() -> None:
    assert values("seed=0..4") == [0, 1, 2, 3, 4] and values("seed=3") == [3]
    assert values("step1=1..64*4") == [1, 4, 16, 64]
    assert values("client-lr=0.1..0.5+0.1") == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert values("wd=0.0001..1*10") == [0.0001, 0.001, 0.01, 0.1, 1.0]
    assert values("--momentum=0..0.9/4") == [0.0, 0.3, 0.6, 0.9]
    assert values("nesterov=0,1") == values("nesterov=false,true") == [False, True]
    assert values("clip_norm=None,1,2.5e-1") == [None, 1.0, 0.25]
    assert values("partition=iid,dirichlet") == ["iid", "dirichlet"] and values("alpha=1,3") == [1.0, 3.0]


def test_grids_and_fields_that_move_together(tmp_path: Path) -> None:
    together = parse_axis(["step1=1,4", "eval_freq1=8,2"], "--zip")
    runs = grid([parse_axis(["seed=0..1"], "--over"), together])
    assert [run_name(one) for one in runs][1:3] == ["seed=0,step1=4,eval_freq1=2", "seed=1,step1=1,eval_freq1=8"]
    (tmp_path / "runs.csv").write_text("seed,client-lr\n0,0.1\n3,1e-2\n")
    (tmp_path / "runs.json").write_text('[{"seed": 0, "client_lr": 0.1}, {"seed": 3, "client_lr": 0.01}]')
    assert read_runs(tmp_path / "runs.csv") == read_runs(tmp_path / "runs.json")
    assert run_name(read_runs(tmp_path / "runs.csv")[1]) == "seed=3,client_lr=0.01"
    long = run_name({"partition": "a" * 300, "seed": 1}), run_name({"partition": "a" * 300, "seed": 2})
    assert len({*long}) == 2 and max(map(len, long)) < 200


REFUSED = {
    "--over sed=0,1": "--over sed: is no field of a run; did you mean 'seed'?",
    "--over log_pth=a,b": "--over log_pth: cannot be swept",
    "--over wandb=online,disabled": "--over wandb: cannot be swept",
    "--over device=cpu,cuda": "--over device: cannot be swept",
    "--over seed=": "--over seed: has no value",
    "--over seed=1,,2": "has an empty value",
    "--over seed": "give FIELD=VALUES",
    "--over": "--over: needs FIELD=VALUES",
    "": "--over: names no runs",
    "--over seed=0.5": "--over seed=0.5: must be a whole number",
    "--over executor=quick": "--over executor=quick: must be auto or stacked or looped or threaded",
    "--over seed=5..1": "the range has no value",
    "--over client_lr=0..1*2": "the range never ends",
    "--over client_lr=1..2+0": "the range never ends",
    "--over seed=0..10000000": "at most 100,000 are taken",
    "--over seed=0,1 --over seed=2": "--over seed: is given twice",
    "--zip seed=0,1 wd=0": "fields that move together have as many values each",
    "--over seed=0..1000": "1,001 runs; if all of them are wanted, say so with --yes",
    "--over seed=1,1": "2 runs would share the directory seed=1",
    "--over client_lr=0.1 start_lr=0.1": "give one of them",
    "--over client_lr=-1": "run client_lr=-1: --client-lr -1.0: must be a finite number, 0 or more",
    "--over seed=0,1 --halving 0": "--halving 0: must be a round",
    "--over seed=0,1 --continue --overwrite": "--continue and --overwrite: give one of them",
    "--continue --over seed=0": "with the settings it began with",
    "--over seed=0 --sed 1": "unknown flag --sed; did you mean '--seed'?",
    "--runs missing.csv": "--runs missing.csv: cannot be read",
    "--over seed=0,1 --metric val_ac": "--metric val_ac: is none of val_acc1",
    "--over model=mlp,quick": "--model 'quick' is unknown",
    "--over seed=0,1 --data-pth missing.npz": "--data-pth missing.npz",
    "--over seed=0,1 --model quick": "--model 'quick' is unknown",
    "--over seed=0 --rounds 3 --epochs 3": "--epochs and --rounds: give one of them",
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_words(
    words: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run(capsys, *sweep_words(data, tmp_path / "sweep", *words.split()))
    assert outcome.status == 2 and outcome.err.count("error") == 1 and REFUSED[words] in outcome.err.splitlines()[-1]
    assert tree(tmp_path) == set()


def test_a_directory_with_a_sweep(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is neither overwritten nor continued without a word, and a finished one stays as it is."""
    words = sweep_words(data, tmp_path / "sweep", "--clients", "2", "--batch-size", "4", "--epochs", "1", "--over")
    plan = run(capsys, *words, "seed=0,1", "step1=1,2", "--dry-run")
    assert plan.status == 0 and plan.out.startswith("4 runs of 2 programs: 2, 2") and tree(tmp_path) == set()
    first = run(capsys, *words, "seed=0,1")
    assert first.status == 0 and "val_acc1" in first.out
    refused = run(capsys, *words, "seed=0,1")
    assert refused.status == 2 and "holds a sweep already" in refused.err
    before = (tmp_path / "sweep" / "seed=1" / "latest.pt").stat().st_mtime_ns
    assert run(capsys, "sweep", "--log-pth", tmp_path / "sweep", "--continue").status == 0
    assert (tmp_path / "sweep" / "seed=1" / "latest.pt").stat().st_mtime_ns == before
    assert run(capsys, *words, "seed=0", "--overwrite").status == 0
    assert (tmp_path / "sweep" / "results.csv").read_text().count("\n") == 2
