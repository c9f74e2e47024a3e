"""Runs that end before their end: Ctrl-C, SIGTERM, and losses that are no longer finite."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastlocal.checkpoint.state_file import read_state_file
from tests.helpers.command_line import arrays, metrics, run, train_words, tree, write_npz
from tests.helpers.fork_server import ForkedRun, ForkServer, wait_until

PATIENCE_S = 120
LONG = ("--epochs", "1000000", "--save-freq1", "1000000", "--save-freq2", "1000000", "--save-freq3", "1000000")


class Fresh(subprocess.Popen[str]):
    """A process that has imported nothing yet, signalled and waited for as forked ones are."""

    send = subprocess.Popen.send_signal

    def running(self) -> bool:
        return self.poll() is None

    def status(self) -> int:
        return self.wait(timeout=PATIENCE_S)


def start(folder: Path, *words: str, python: tuple[str, ...] = ()) -> Fresh:
    """fastlocal in a process of its own that Ctrl-C reaches, though the tests themselves may run in the background."""
    return Fresh(
        [sys.executable, *python, "-m", "fastlocal", *words],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "stderr").open("w"),
        text=True,
        cwd=folder,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(process: ForkedRun | Fresh, path: Path, text: str) -> None:
    """Until the file at `path` holds `text`."""
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists() or text not in path.read_text():
        assert process.running() and time.monotonic() < deadline, "the run ended before it was stopped"
        time.sleep(0.005)


def stopped(process: ForkedRun | Fresh, number: signal.Signals, folder: Path) -> list[str]:
    """Send the signal twice, as where a shell passes it on; the lines on standard error once status 75 has come."""
    process.send(number)
    time.sleep(0.002)
    process.send(number)
    status, text = process.status(), (folder / "stderr").read_text()
    assert status == 75, text
    assert "Traceback" not in text and "Exception ignored" not in text
    return text.splitlines()


def assert_whole(directory: Path) -> None:
    """Every line and every checkpoint of a run directory can be read, and nothing else is left."""
    assert {path.suffix for path in directory.iterdir()} <= {".json", ".jsonl", ".pt"}
    assert not [path for path in directory.iterdir() if path.name.startswith(".")]
    json.loads((directory / "config.json").read_text())
    metrics(directory)
    for path in directory.glob("*.pt"):
        assert read_state_file(path) if path.name.startswith("resume") else torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("number", "flags"),
    [
        (signal.SIGINT, ()),
        (signal.SIGTERM, ("--model", "cnn", "--momentum", "0.9", "--debug", "--chunk", "1")),
    ],
)
def test_stopped_in_the_middle(
    number: signal.Signals, flags: tuple[str, ...], fork_server: ForkServer, data: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    process = fork_server.start([*train_words(data, directory), *LONG, *flags], tmp_path / "stderr")
    wait_for(process, directory / "metrics.jsonl", '"comm_round": 7,')
    lines = stopped(process, number, tmp_path)
    goes_on = f"`fastlocal train --config {directory / 'config.json'} --continue` goes on"
    assert lines[-1] == f"fastlocal: stopped by a signal; {goes_on}"
    assert_whole(directory)
    rows = metrics(directory)
    assert [row["comm_round"] for row in rows] == list(range(1, len(rows) + 1)) and len(rows) >= 7


def test_the_last_average_is_saved(fork_server: ForkServer, data: Path, tmp_path: Path) -> None:
    """Without a single evaluation before: what the rounds reached is in latest.pt."""
    directory = tmp_path / "run"
    process = fork_server.start([*train_words(data, directory), *LONG, "--eval-freq1", "1000000"], tmp_path / "stderr")
    wait_for(process, tmp_path / "stderr", "round 3/")
    stopped(process, signal.SIGTERM, tmp_path)
    assert_whole(directory)
    assert metrics(directory) == []
    first = torch.load(directory / "H=1-1-1_init.pt", weights_only=True)
    last = torch.load(directory / "latest.pt", weights_only=True)
    assert not any(torch.equal(first[name], last[name]) for name in first)


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGTERM, "fastlocal.config.validation"),
        (signal.SIGINT, "torch._C"),
        (signal.SIGINT, "fastlocal.runs.run"),
    ],
)
def test_stopped_while_it_starts(number: signal.Signals, moment: str, data: Path, tmp_path: Path) -> None:
    """The moments are those at which a module has been imported, which -X importtime tells."""
    directory = tmp_path / "run"
    process = start(tmp_path, *train_words(data, directory), *LONG, "--tune-seconds", "0", python=("-X", "importtime"))
    wait_for(process, tmp_path / "stderr", f" {moment}\n")
    lines = stopped(process, number, tmp_path)
    lines = [line for line in lines if not line.startswith(("import time:", "round", "evaluation"))]
    assert len(lines) == 1 and lines[0].startswith("fastlocal: stopped by a signal")
    if directory.exists():
        assert_whole(directory)
    assert {path.name for path in tmp_path.iterdir()} <= {"stderr", "run"}


def test_stopped_while_images_are_decoded(tmp_path: Path) -> None:
    """Ctrl-C on a terminal reaches the decoding processes too."""
    from PIL import Image

    for half in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / half / name).mkdir(parents=True)
            Image.effect_noise((1500, 1500), 80).save(tmp_path / "images" / half / name / "0.png")
            for copy in range(1, 200):
                os.link(*(tmp_path / "images" / half / name / f"{number}.png" for number in (0, copy)))
    words = [*train_words(tmp_path / "images", tmp_path / "run"), "--dataset", "image_folder"]
    process = start(tmp_path, *words)
    caching = tmp_path / "images" / ".fastlocal_cache"
    assert wait_until(lambda: not process.running() or any(caching.glob("*.partial")), PATIENCE_S)
    os.killpg(process.pid, signal.SIGINT)
    status, text = process.status(), (tmp_path / "stderr").read_text()
    assert status == 75, text
    assert "Traceback" not in text and text.splitlines()[-1] == "fastlocal: stopped by a signal"
    assert not (tmp_path / "run").exists()
    assert tree(tmp_path / "images" / ".fastlocal_cache") <= {"lock"}


DIVERGES = ("--model", "mlp", "--client-lr", "1e30", "--epochs", "2", "--precision", "fp32")


@pytest.mark.parametrize("executor", ["stacked", "looped"])
def test_a_loss_that_is_not_finite(
    executor: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (*DIVERGES, "--executor", executor, "--eval-on-start", "--step1", "2")
    outcome = run(capsys, *train_words(data, tmp_path / "run"), *flags)
    assert outcome.status == 3 and "Traceback" not in outcome.err
    last = outcome.err.splitlines()[-1]
    for part in ("round 1", "step 1", "client 0", "the loss is", str(tmp_path / "run" / "latest.pt")):
        assert part in last
    assert_whole(tmp_path / "run")
    assert [row["comm_round"] for row in metrics(tmp_path / "run")] == [0]
    first = torch.load(tmp_path / "run" / "H=2-1-1_init.pt", weights_only=True)
    last_good = torch.load(tmp_path / "run" / "latest.pt", weights_only=True)
    assert all(torch.equal(first[name], last_good[name]) for name in first)


def test_nothing_evaluated_before(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, *train_words(data, tmp_path / "run"), *DIVERGES, "--chunk", "1", "--step1", "2")
    assert outcome.status == 3
    assert "no model was written" in outcome.err and not (tmp_path / "run" / "latest.pt").exists()
    assert metrics(tmp_path / "run") == []


def test_the_client_that_diverges_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images are black but for one, which turns up at the place in the epoch's order that the seed gives it."""
    images = arrays(train=32)
    images["x_train"][:] = 0
    images["x_train"][5] = 255
    path = write_npz(tmp_path / "one.npz", **images)
    words = [*train_words(path, tmp_path / "run"), "--batch-size", "2", "--total-batch-size", "8", "--step1", "4"]
    outcome = run(capsys, *words, "--mean", "0", "--std", "3e-39", "--seed", "3")
    step, within = divmod(torch.randperm(32, generator=torch.Generator().manual_seed(3)).tolist().index(5), 8)
    assert outcome.status == 3
    assert f"round 1, step {step}, client {within // 2}: the loss is" in outcome.err


def test_going_on_with_nan(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, *train_words(data, tmp_path / "run"), *DIVERGES, "--on-nan", "continue", "--debug")
    assert outcome.status == 0
    assert outcome.err.count("--on-nan continue") == 1
    rows = metrics(tmp_path / "run")
    assert [row["comm_round"] for row in rows] == list(range(1, 9))
    assert rows[-1]["train_loss"] is None and rows[-1]["val_loss"] is None
