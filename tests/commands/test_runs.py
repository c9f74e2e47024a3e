"""What a command line makes: dry runs, run directories, and runs repeated from their config.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastlocal.commands.flags import parse
from tests.helpers.command_line import metrics, run, train_words, tree, write_npz

PLAN = {
    "clients": "2, 2 resident at once",
    "H per phase": "2, 3, 4",
    "rounds": "5, then 1 local steps that are not averaged",
    "decay rounds": "2, 3",
    "rate": "0.1 to 0.3 over 4 steps, x 0.5 at each decay",
}


def test_dry_run_prints_the_plan_and_writes_nothing(
    data: Path, tmp_path: Path, caches: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = tree(caches)
    words = "--dry-run --epochs 4 --step1 2 --step2 3 --step3 4 --decay1 1 --decay2 2 --warm-up --warmup-epochs 1"
    rates = "--start-lr 0.1 --max-lr 0.3 --gamma 0.5 --wandb offline --tensorboard --debug --eval-on-start"
    for directory in (tmp_path / "run", None):
        outcome = run(capsys, *train_words(data, str(directory)), *words.split(), *rates.split())
        assert outcome.status == 0, outcome.err
        lines = dict(line.split("  ", 1) for line in outcome.out.splitlines() if "  " in line)
        lines = {name: value.strip() for name, value in lines.items()}
        assert {name: lines[name] for name in PLAN} == PLAN
        assert "memory" in lines and "MiB" in outcome.out
    assert tree(tmp_path) == set() and tree(caches) == before


def test_a_run_directory_of_its_own(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run(capsys, *train_words(data, "None")).status == 0
    found = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(found) == 2 and all(name.startswith("train_2") for name in found)


RICH = """
    --model cnn --momentum 0.9 --nesterov --warm-up --warmup-epochs 1 --max-lr 0.3 --start-lr 0.05 --label-noise --aug 1
    --replacement --mean 0.4 0.5 0.6 --std 0.2 0.2 0.3 --step1 2 --chunk 1 --seed 11 --epochs 3 --group-weight --wd 0.01
    --eval-on-start --decay1 2 --precision fp64
""".split()


@pytest.mark.parametrize("flags", [[], RICH], ids=["plain", "rich"])
def test_config_repeats_a_run(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another working folder, with the data given relative to the first one."""
    write_npz(tmp_path / "tiny.npz", channels=3)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(capsys, *train_words(Path("tiny.npz"), "first"), *flags).status == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = tmp_path / "first" / "config.json"
    outcome = run(capsys, "train", "--config", config, "--log-pth", tmp_path / "second")
    assert outcome.status == 0, outcome.err
    first, second = (tmp_path / name for name in ("first", "second"))
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
    states = [torch.load(folder / "latest.pt", weights_only=True) for folder in (first, second)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    stored = [json.loads((folder / "config.json").read_text()) for folder in (first, second)]
    assert stored[0].pop("log")["log_pth"] == str(first) and stored[1].pop("log")["log_pth"] == str(second)
    assert stored[0] == stored[1]

    assert run(capsys, "train", f"--config={config}").status == 0
    (own,) = (tmp_path / "elsewhere" / "runs").iterdir()
    assert (own / "metrics.jsonl").read_bytes() == (first / "metrics.jsonl").read_bytes()


def test_flags_change_a_config(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *train_words(data, tmp_path / "first")).status == 0
    words = ["--config", str(tmp_path / "first" / "config.json")]
    kept = parse(words).run
    assert (kept.client.batch_size, kept.sgd.start_lr, kept.log.log_pth) == (8, 0.01, None)
    changed = parse(["--seed", "5", *words, "--lr", "0.2", "--clients", "4", "--rounds", "9"]).run
    assert (changed.machine.seed, changed.sgd.lr, changed.sgd.start_lr) == (5, 0.2, None)
    assert (changed.clients, changed.schedule.rounds, changed.schedule.epochs) == (4, 9, 1)
    assert run(capsys, "train", *words, "--epochs", "2", "--log-pth", tmp_path / "longer").status == 0
    assert len(metrics(tmp_path / "longer")) == 8

    refused = run(capsys, "train", *words, "--log-pth", tmp_path / "first")
    assert refused.status == 2 and "already holds a run" in refused.err
    again = run(capsys, "train", *words, "--overwrite", "--seed", "5")
    assert again.status == 0, again.err
    assert json.loads((tmp_path / "first" / "config.json").read_text())["machine"]["seed"] == 5


def test_overwrite_takes_the_place_of_a_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, directory = train_words(data, tmp_path / "run"), tmp_path / "run"
    assert run(capsys, *words, "--save-freq1", "1", "--debug", "--epochs", "2").status == 0
    (directory / "notes.txt").write_text("mine")
    (directory / "best.pt").write_text("mine too")
    before = tree(directory)

    outcome = run(capsys, *words)
    assert outcome.status == 2 and "--log-pth" in outcome.err and "--overwrite" in outcome.err
    assert tree(directory) == before and len(metrics(directory)) == 8

    for flag in (("--overwrite",), ("--overwrite", "1")):
        assert run(capsys, *words, *flag).status == 0
        assert len(metrics(directory)) == 4
        own = {"config.json", "metrics.jsonl", "latest.pt", "H=1-1-1_init.pt", "resume.pt", "resume.1.pt"}
        assert tree(directory) == {*own, "notes.txt", "best.pt"}
    assert run(capsys, *words, "--overwrite", "0").status == 2


def test_overwrite_spares_the_start_weights(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, start = train_words(data, tmp_path / "run"), tmp_path / "run" / "latest.pt"
    assert run(capsys, *words).status == 0
    before = {name: (tmp_path / "run" / name).read_bytes() for name in tree(tmp_path / "run")}
    outcome = run(capsys, *words, "--overwrite", "--resume-pth", start)
    assert outcome.status == 2 and "--resume-pth" in outcome.err and "move it" in outcome.err
    assert {name: (tmp_path / "run" / name).read_bytes() for name in tree(tmp_path / "run")} == before


def test_a_folder_without_a_run_keeps_its_files(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Start weights may lie in the folder that becomes the run directory."""
    assert run(capsys, *train_words(data, tmp_path / "first")).status == 0
    (tmp_path / "run").mkdir()
    start = tmp_path / "run" / "H=1-1-1_start.pt"
    start.write_bytes((tmp_path / "first" / "latest.pt").read_bytes())
    assert run(capsys, *train_words(data, tmp_path / "run"), "--resume-pth", start).status == 0
    ours = {"config.json", "metrics.jsonl", "latest.pt", "resume.pt", "resume.1.pt"}
    assert tree(tmp_path / "run") == {start.name, *ours}


def test_a_run_without_evaluations(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, *train_words(data, tmp_path / "run"), "--step1", "100").status == 0
    assert metrics(tmp_path / "run") == []
