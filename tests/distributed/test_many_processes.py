"""The same run on one process and on several: the same samples, the same model, one writer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastlocal.cli import main
from tests.helpers.fork_server import ForkServer
from tests.helpers.processes import ROOT, TORCHRUN, environment, on_ranks

DIGITS = ("train", "--dataset", "digits", "--device", "cpu", "--precision", "fp64", "--tune-seconds", "0")
LOGS = ("--debug", "1", "--save-every", "0")
SGD = ("--batch-size", "4", "--client-lr", "0.05", "--wd", "0.01")
RUNS: dict[str, tuple[str, ...]] = {
    "momentum, label noise, uneven clients, left-over steps": (
        *("--model", "mlp", "--clients", "7", "--momentum", "0.9", "--nesterov", "1", "--label-noise", "1"),
        *("--steps-per-epoch", "5", "--epochs", "2", "--step1", "3", "--decay1", "100", "--decay2", "100"),
    ),
    "BatchNorm, with replacement, in chunks": (
        *("--model", "resnet20", "--clients", "5", "--replacement", "1", "--chunk", "2", "--bn-batches", "3"),
        *("--rounds", "2", "--step1", "2", "--aug", "1", "--eval-on-start", "1"),
    ),
    "AdamW, averaged, own samples": (
        *("--model", "mlp", "--clients", "5", "--client-optimizer", "adamw", "--client-state", "average"),
        *("--partition", "quantity", "--rounds", "3", "--local-epochs", "0.1", "--clip-norm", "0.5"),
    ),
    "SCAFFOLD, cohorts, in chunks": (
        *("--model", "mlp", "--clients", "5", "--population", "9", "--partition", "quantity", "--chunk", "2"),
        *("--algorithm", "scaffold", "--rounds", "4", "--step1", "3", "--momentum", "0.5"),
    ),
    "FedNova, unequal steps, in a fixed order": (
        *("--model", "mlp", "--clients", "5", "--partition", "quantity", "--reduce-order", "fixed"),
        *("--algorithm", "fednova", "--rounds", "3", "--local-epochs", "0.1", "--momentum", "0.5"),
    ),
    "warm-up and decay, one client after the other": (
        *("--model", "cnn", "--clients", "4", "--executor", "looped", "--warm-up", "1"),
        *("--warmup-epochs", "1", "--max-lr", "0.2", "--steps-per-epoch", "2", "--epochs", "3"),
        *("--step1", "1", "--step2", "2", "--step3", "2", "--decay1", "1", "--decay2", "100"),
    ),
    "by epochs, in worker threads": (
        *("--schedule", "epochs", "--model", "cnn", "--clients", "6", "--executor", "threaded", "--workers", "2"),
        *("--steps-per-epoch", "4", "--epochs", "3", "--step1", "3", "--decay1", "2", "--decay2", "50"),
        *("--decay3", "60", "--momentum", "0.5", "--group-weight", "1", "--resume", "1", "--save-freq1", "1"),
    ),
}


def words_of(name: str, directory: Path) -> list[str]:
    return [*DIGITS, *SGD, *RUNS[name], *LOGS, "--log-pth", str(directory)]


@pytest.mark.parametrize("name", RUNS)
def test_three_processes_train_the_same_model(name: str, fork_server: ForkServer, tmp_path: Path) -> None:
    """Which have different numbers of clients in all runs but the last; two and four are below."""
    assert main(words_of(name, tmp_path / "alone")) == 0
    said = on_ranks(fork_server, 3, words_of(name, tmp_path / "ranks"), tmp_path / "log")
    assert said.count("communication rounds. Written:") == 1, "the first rank alone says what there is"
    assert_alike(tmp_path / "ranks", tmp_path / "alone")


FIXED = (
    *("train", "--dataset", "digits", "--device", "cpu", "--tune-seconds", "0", "--model", "cnn", "--clients", "7"),
    *("--reduce-order", "fixed", "--executor", "looped", "--batch-size", "4", "--client-lr", "0.05"),
    *("--momentum", "0.9", "--rounds", "3", "--step1", "2", "--algorithm", "scaffold", *LOGS),
)


def test_in_a_fixed_order_not_one_bit_differs(fork_server: ForkServer, tmp_path: Path) -> None:
    folders = {ranks: tmp_path / str(ranks) for ranks in (1, 2, 4)}
    for ranks, folder in folders.items():
        on_ranks(fork_server, ranks, [*FIXED, "--chunk", 5 - ranks, "--log-pth", folder], tmp_path / "log")
    for name in ("latest.pt", "metrics.jsonl", "steps.jsonl"):
        assert len({(folder / name).read_bytes() for folder in folders.values()}) == 1, name


TWICE = """
import sys, torch, fastlocal
inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
pair, model = (inputs, (inputs[:, 0] > 0).long()), torch.nn.Linear(6, 2)
torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
try:
    fastlocal.train(model, pair, pair, clients=3, batch_size=100, rounds=2, lr=0.1)
    raise SystemExit("100 samples of 64 were drawn")
except ValueError:
    pass
for name, clients in (("first", 3), ("second", 4)):
    fastlocal.train(
        model, pair, pair, clients=clients, local_steps=2, batch_size=4, rounds=2, replacement=True, progress=False,
        precision="fp64", executor="stacked", debug=True, directory=f"{sys.argv[1]}/{name}",
    )
"""


def test_two_runs_in_one_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the launcher's store outlives; after a mistake, too."""
    (tmp_path / "twice.py").write_text(TWICE)
    monkeypatch.setattr(sys, "argv", ["twice.py", str(tmp_path / "alone")])
    exec(TWICE, {})
    command = [*TORCHRUN, "--nproc-per-node", "2", str(tmp_path / "twice.py"), str(tmp_path / "ranks")]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("first", "second"):
        assert_alike(tmp_path / "ranks" / name, tmp_path / "alone" / name)


def assert_alike(directory: Path, other: Path) -> None:
    """The same files, and to the rounding of sums the same numbers in them; samples alike show in every step's loss."""
    names = {path.name for path in other.iterdir() if not path.name.startswith("resume.")}
    assert {path.name for path in directory.iterdir() if not path.name.startswith("resume.")} == names
    for log in ("metrics.jsonl", "steps.jsonl", *({"clients.jsonl"} & names)):
        got, wanted = rows(directory / log), rows(other / log)
        assert len(got) == len(wanted) > 0
        for one, another in zip(got, wanted, strict=True):
            assert one == pytest.approx(another, rel=1e-9, abs=1e-12)
    for name in names:
        if name.endswith(".pt"):
            got, wanted = (torch.load(folder / name, weights_only=True) for folder in (directory, other))
            assert list(got) == list(wanted)
            for key, value in wanted.items():
                torch.testing.assert_close(got[key], value, rtol=1e-9, atol=1e-11)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
