"""fastlocal train --continue: what it goes on with, what it refuses, and what it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fastlocal import rounds_to
from fastlocal.checkpoint.restore import with_stored_settings
from fastlocal.cli import main
from fastlocal.commands.flags import parse
from fastlocal.runs.from_config import run_from_config
from tests.helpers.command_line import metrics, run, train_words, tree
from tests.helpers.run_files import difference, run_files

MOMENTUM = ("--momentum", "0.9", "--debug", "--chunk", "1", "--step1", "3")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of four steps in rounds of three: two rounds, and two steps left over."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert main([*train_words(data, directory), *MOMENTUM, "--epochs", "2"]) == 0
    return directory


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "moved"))


@pytest.mark.parametrize("by", ["config", "same command"])
def test_a_longer_run(by: str, data: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run directory may have been moved; steps left over at its end are trained again, as part of a whole round."""
    assert run(capsys, *train_words(data, tmp_path / "long"), *MOMENTUM, "--epochs", "5").status == 0
    longer = ["train", "--config", copied / "config.json", "--continue", "--epochs", "5"]
    if by == "same command":
        longer = [*train_words(data, copied), *MOMENTUM, "--continue", "1", "--epochs", "5"]
    outcome = run(capsys, *longer)
    assert outcome.status == 0 and "going on after 2 rounds" in outcome.err, outcome.err
    assert difference(run_files(copied), run_files(tmp_path / "long")) == ""
    stored = [json.loads((folder / "config.json").read_text()) for folder in (copied, tmp_path / "long")]
    assert [one["log"].pop("log_pth") for one in stored] == [str(copied), str(tmp_path / "long")]
    assert stored[0] == stored[1]


def test_a_complete_run(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    outcome = run(capsys, "train", "--config", copied / "config.json", "--log-pth", copied, "--continue")
    assert outcome.status == 0 and "complete after 2 rounds" in outcome.err
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_a_run_that_ends_at_a_value(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has the files of a run of as many rounds; another value, or more rounds without one, goes on."""
    words = ["train", "--dataset", "npz", "--data-pth", data, "--device", "cpu", "--batch-size", "8", "--clients", "2"]
    words += ["--step1", "2", "--rounds", "8", "--client-lr", "0.05", "--save-every", "3"]
    assert run(capsys, *words, "--log-pth", tmp_path / "whole").status == 0
    losses = [row["val_loss"] for row in metrics(tmp_path / "whole")]
    assert sorted(losses, reverse=True) == losses

    def ended(*more: object) -> tuple[str, list[dict[str, Any]]]:
        outcome = run(capsys, *words, "--log-pth", tmp_path / "run", *more)
        assert outcome.status == 0, outcome.err
        return outcome.err, metrics(tmp_path / "run")

    first, later = (f"val_loss={loss}" for loss in (losses[2], (losses[4] + losses[5]) / 2))
    said, rows = ended("--stop-at", first)
    assert "ends by --stop-at" in said and rows == metrics(tmp_path / "whole")[:3]
    before = run_files(tmp_path / "run")
    assert run(capsys, *words, "--rounds", "3", "--log-pth", tmp_path / "short").status == 0
    found, short = run_files(tmp_path / "run"), run_files(tmp_path / "short")
    assert difference(found, short) in ("", "differ: resume.pt")  # which says that three rounds were the end
    said, rows = ended("--stop-at", first, "--continue")
    assert "complete after 3 rounds" in said and "reached in round 3" in said
    assert difference(run_files(tmp_path / "run"), before) == ""
    assert len(ended("--stop-at", later, "--continue")[1]) == 6
    assert rounds_to(tmp_path / "run", losses[2], "val_loss") == 3 == rounds_to(rows, losses[2], "val_loss")
    assert rounds_to(tmp_path / "run", 0.0, "val_loss") is None
    with pytest.raises(ValueError, match="did you mean 'val_loss'"):
        rounds_to(tmp_path / "run", 0.5, "val_los")
    assert len(ended("--continue")[1]) == 8
    assert difference(run_files(tmp_path / "run"), run_files(tmp_path / "whole")) == ""


def test_without_a_saved_state_it_starts_over(
    data: Path, finished: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = run_files(finished)
    for path in copied.glob("resume*.pt"):
        path.unlink()
    (copied / "metrics.jsonl").write_text('{"comm_ro')
    (copied / ".latest.pt.abc.fastlocal.tmp").write_text("half")
    assert run(capsys, "train", "--config", copied / "config.json", "--continue").status == 0
    assert difference(run_files(copied), wanted) == ""
    words = [*train_words(data, tmp_path / "new"), *MOMENTUM, "--epochs", "2", "--continue"]
    assert run(capsys, *words).status == 0
    assert difference(run_files(tmp_path / "new"), wanted) == ""


REFUSED: dict[str, tuple[Any, ...]] = {
    "--client-lr": ("0.3",),
    "--seed": ("4",),
    "--step1": ("2",),
    "--decay1": ("100",),
    "--batch-size": ("4",),
    "--momentum": ("0.8",),
    "--precision": ("fp64",),
    "--mean": ("0.3",),
    "--model": ("cnn",),
    "--replacement": (),
    "--sampling": ("quasi-random",),
    "--sampling-pages": ("4",),
    "--epochs": ("1",),
    "--rounds": ("1",),
}


@pytest.mark.parametrize("flag", REFUSED)
def test_what_would_change_the_past_is_refused(flag: str, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    outcome = run(capsys, "train", "--config", copied / "config.json", "--continue", flag, *REFUSED[flag])
    assert outcome.status == 2 and outcome.err.splitlines()[-1].count(flag) >= 1, outcome.err
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_which_run(data: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["train", "--continue"], "--log-pth RUN"),
        (["train", "--config", copied / "config.json", "--continue", "--overwrite"], "--overwrite"),
    ):
        outcome = run(capsys, *words)
        assert outcome.status == 2 and "--continue" in outcome.err and said in outcome.err
    (copied / "metrics.jsonl").write_text("")
    outcome = run(capsys, "train", "--config", copied / "config.json", "--continue", "--epochs", "3")
    assert outcome.status == 2 and "metrics.jsonl is shorter" in outcome.err and "--overwrite" in outcome.err


def test_overwrite_removes_saved_states(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--config", copied / "config.json", "--log-pth", copied, "--overwrite", "--save-every", "0"]
    assert run(capsys, *words).status == 0
    assert not list(copied.glob("resume*")) and len(metrics(copied)) == 2


@pytest.mark.parametrize("keep", [1, 3])
def test_how_many_states_are_kept(keep: int, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--epochs", "6", "--keep", keep, "--save-every", "1"]
    assert run(capsys, *train_words(data, tmp_path / "run"), *words).status == 0
    names = {"resume.pt", *(f"resume.{number}.pt" for number in range(1, keep))}
    assert {name for name in tree(tmp_path / "run") if name.startswith("resume")} <= names


@pytest.mark.parametrize(
    ("flag", "value"), [("--save-every", "-1"), ("--keep", "0"), ("--grace", "nan"), ("--save-minutes", "-2")]
)
def test_numbers_that_cannot_be(
    flag: str, value: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(capsys, *train_words(data, tmp_path / "run"), flag, value)
    assert outcome.status == 2 and flag in outcome.err and not (tmp_path / "run").exists()


def test_the_executor_stays(data: Path, tmp_path: Path, own_cache_home: Path) -> None:
    """What was timed, or given, once is not timed again: neither by --continue nor by --config."""
    long = ("--epochs", "10000000", "--tune-seconds", "0.2")
    words = train_words(data, tmp_path / "run")[1:]
    timed = run_from_config(parse([*words, *long]).run, lambda text: None)
    assert "timed, per client and local step:" in timed.notes
    (own_cache_home / "tuning.json").unlink()

    (tmp_path / "config.json").write_text(timed.config.to_json())
    of_config = parse(["--config", str(tmp_path / "config.json"), "--log-pth", str(tmp_path / "other")]).run
    assert run_from_config(of_config, lambda text: None).config.machine == timed.config.machine

    assert main([str(word) for word in (*train_words(data, tmp_path / "run"), "--executor", "looped")]) == 0
    going_on = with_stored_settings(parse([*words, *long]).run, tmp_path / "run", fill_in=True)
    assert run_from_config(going_on, lambda text: None).config.machine.executor == "looped"
    assert not (own_cache_home / "tuning.json").exists()
