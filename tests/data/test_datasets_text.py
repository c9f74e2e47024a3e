"""Folders of text files as clients: windows read by hand, runs against a plain loop, and what is refused."""

from __future__ import annotations

import math
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlocal.data.datasets import load
from fastlocal.data.partition import Partition
from fastlocal.models import build_for_tokens
from tests.helpers.command_line import metrics, run
from tests.helpers.plain_federated import Federation
from tests.helpers.refusals import assert_refused

pytestmark = pytest.mark.filterwarnings("error:There is a performance drop")

CONTEXT, BATCH, STEPS, ROUNDS = 7, 3, 2, 2
SIZES = {"a.txt": 83, "b/c.txt": 210, "b/d": 96, "short": 7, ".hidden": 300, ".git/e": 300}
"""Bytes of each file; the last three are no clients."""
CLIENTS = ["a.txt", "b/c.txt", "b/d"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of any bytes, among them some that are no UTF-8."""
    for name, size in SIZES.items():
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes())
    return tmp_path / "texts"


def windows(folder: Path, name: str) -> tuple[list[bytes], list[bytes]]:
    """The windows of a file for training and for tests, by slices."""
    data, window = (folder / name).read_bytes(), CONTEXT + 1
    cut = [data[begin : begin + window] for begin in range(0, len(data) - window + 1, window)]
    return cut[: len(cut) - len(cut) // 10], cut[len(cut) - len(cut) // 10 :]


def as_tokens(parts: list[bytes]) -> Tensor:
    return torch.tensor([list(part) for part in parts])


def of_all(folder: Path) -> tuple[Tensor, Tensor]:
    """The windows of all clients, for training and for tests."""
    halves = zip(*(windows(folder, name) for name in CLIENTS), strict=True)
    train, test = (as_tokens([window for part in half for window in part]) for half in halves)
    return train, test


def test_windows_are_slices_of_the_files(folder: Path) -> None:
    notes: list[str] = []
    data = load("text", data_pth=str(folder), context=CONTEXT, message=notes.append)
    train, test = of_all(folder)
    for split, expected in ((data.train, train), (data.test, test)):
        assert split.targets is not None and torch.equal(split.targets.long(), expected[:, 1:])
        assert torch.equal(split.inputs.long(), expected[:, :-1])  # type: ignore[union-attr]
    parts = data.natural
    assert isinstance(parts, Partition) and parts.client_ids == tuple(CLIENTS) and data.classes == 256
    assert [len(windows(folder, name)[0]) for name in CLIENTS] == parts.sizes.tolist()
    assert "3 files" in notes[0] and "1 shorter files left out" in notes[0]
    digest = parts.meta["digest"]
    assert digest in notes[0]
    (folder / "short").write_bytes(b"changed")
    again = load("text", data_pth=str(folder), context=CONTEXT).natural
    assert again is not None and again.meta["digest"] != digest

    own = load("text", data_pth=str(folder), val_pth=str(folder / "b"), context=CONTEXT)
    assert len(own.train) == sum(size // 8 for size in (83, 210, 96)) and len(own.test) == 210 // 8 + 96 // 8


def test_the_standard_library(tmp_path: Path) -> None:
    data = load("text", data_pth=None, context=1000)
    names = data.natural.client_ids if data.natural else None
    assert names is not None and "argparse.py" in names and all(name.endswith(".py") for name in names)
    text = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_bytes()
    first = data.natural.samples_of(names.index("argparse.py"))[0] if data.natural else 0
    assert bytes(data.train.inputs[first].tolist()) == text[:1000]  # type: ignore[union-attr]


class Client(nn.Module):
    """The classes of every place before the places, as torch's loss takes them."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"n_layers": 1, "width": 8, "n_heads": 2}
        self.model = build_for_tokens("gpt_char", vocabulary=256, context=CONTEXT, seed=5, **sizes).double()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens).transpose(1, 2)


def plain_run(folder: Path) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Federated averaging, client by client with torch.optim.SGD; the model, and metrics of each round."""
    train, test = of_all(folder)
    sizes = [len(windows(folder, name)[0]) for name in CLIENTS]
    ends = np.cumsum(sizes)
    owned = [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    plan = Federation(owned, clients=3, local_steps=STEPS, batch_size=BATCH, client_epochs="continue")
    module, start = Client(), Client().state_dict()
    rows = []
    for number in range(1, ROUNDS + 1):
        sums = {name: torch.zeros_like(value) for name, value in start.items()}
        losses, hits = [], 0
        for client, size in enumerate(sizes):
            module.load_state_dict(start)
            optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
            for batch in plan.batches(client, number, (number - 1) * STEPS):
                tokens = train[batch]
                outputs = module(tokens[:, :-1])
                loss = F.cross_entropy(outputs, tokens[:, 1:])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                hits += int((outputs.argmax(1) == tokens[:, 1:]).sum())
            for name, value in module.state_dict().items():
                sums[name] += value * size / sum(sizes)
        start = sums
        module.load_state_dict(start)
        with torch.no_grad():
            outputs = module(test[:, :-1])
        row = {"train_loss": sum(losses) / len(losses), "val_loss": F.cross_entropy(outputs, test[:, 1:]).item()}
        row["train_acc1"] = hits / (len(losses) * BATCH * CONTEXT)
        row["val_acc1"] = (outputs.argmax(1) == test[:, 1:]).double().mean().item()
        rows.append(row | {"train_ppl": math.exp(row["train_loss"]), "val_ppl": math.exp(row["val_loss"])})
    return {name.removeprefix("model."): value for name, value in start.items()}, rows


def words(folder: Path, directory: Path, executor: str) -> list[Any]:
    sizes = ["--context", CONTEXT, "--n-layers", 1, "--width", 8, "--n-heads", 2]
    given = ["train", "--dataset", "text", "--data-pth", folder, "--model", "gpt-char", *sizes, "--device", "cpu"]
    given += ["--partition", "natural", "--clients", 3, "--batch-size", BATCH, "--rounds", ROUNDS, "--step1", STEPS]
    given += ["--client-lr", 0.3, "--wd", 0, "--seed", 5, "--precision", "fp64", "--executor", executor]
    return [*given, "--log-pth", directory]


def test_runs_are_the_plain_loop(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected, rows = plain_run(folder)
    for executor, chunk in (("stacked", 3), ("stacked", 2), ("looped", 2), ("threaded", 3)):
        directory = tmp_path / f"{executor} {chunk}"
        outcome = run(capsys, *words(folder, directory, executor), "--chunk", chunk)
        assert outcome.status == 0 and f"val ppl {rows[-1]['val_ppl']:.4f}" in outcome.err, outcome.err
        found = torch.load(directory / "latest.pt")
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10)
        for line, row in zip(metrics(directory), rows, strict=True):
            assert {name: line[name] for name in row} == pytest.approx(row, abs=1e-10)
    sizes = words(folder, directory, "")[7:15]
    last = run(capsys, "evaluate", directory / "latest.pt", "--dataset", "text", "--data-pth", folder, "--model",
               "gpt_char", *sizes, "--precision", "fp64", "--device", "cpu")  # fmt: skip
    assert last.out.split() == [
        part for name in ("val_acc1", "val_loss", "val_ppl") for part in (name, f"{rows[-1][name]:.4f}")
    ]


def test_held_out_windows_of_each_client(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Own models are evaluated by vmap over their weights, the global one over batches: as one by one."""
    outcomes = []
    for executor in ("stacked", "looped"):
        directory = tmp_path / executor
        given = words(folder, directory, executor)
        place = given.index("--step1")
        given[place : place + 2] = ["--local-epochs", 1, "--eval-clients", 1]
        assert run(capsys, *given).status == 0
        outcomes.append(metrics(directory))
    for one, other in zip(*outcomes, strict=True):
        assert one == pytest.approx(other, abs=1e-10) and 0 < one["own_loss"] < 8


def test_what_else_text_takes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other sources and partitions, nobody's samples, rounds to a perplexity, and the statistics of a partition."""
    base = [word for word in words(folder, tmp_path / "base", "stacked")]
    assert run(capsys, *base).status == 0
    assert run(capsys, *words(folder, tmp_path / "torch", "stacked"), "--source", "torch", "--nw", 0).status == 0
    assert metrics(tmp_path / "torch") == metrics(tmp_path / "base")
    for place, partition in enumerate(("iid", "quantity")):
        assert run(capsys, *words(folder, tmp_path / str(place), "stacked"), "--partition", partition).status == 0
    ended = run(capsys, *words(folder, tmp_path / "ended", "stacked"), "--stop-at", "val_ppl=1e9")
    assert len(metrics(tmp_path / "ended")) == 1 and "the run ends by --stop-at" in ended.err
    statistics = ["partition", "--dataset", "text", "--data-pth", folder, "--partition", "natural", "--context", 7]
    printed = run(capsys, *statistics)
    assert printed.status == 0 and "3" in printed.out


REFUSED: dict[str, tuple[list[Any], tuple[str, ...]]] = {
    "a file": (["--data-pth", "texts/a.txt"], ("--data-pth", "a.txt is a file")),
    "no folder": (["--data-pth", "absent"], ("--data-pth", "does not exist")),
    "an empty folder": (["--data-pth", "empty"], ("--data-pth", "has no files")),
    "short files": (["--context", 300], ("--data-pth", "--context 300", "the longest of 4 has 210")),
    "no tests": (["--context", 30], ("10 windows of 31 bytes", "--val-pth")),
    "a training folder": (["--train-pth", "texts"], ("--train-pth",)),
    "no context": (["--context", 0], ("--context 0",)),
    "heads": (["--n-heads", 3], ("--n-heads 3", "--width 8")),
    "no heads": (["--n-heads", 0], ("--n-heads 0",)),
    "no layers": (["--n-layers", 0], ("--n-layers 0",)),
    "a model of images": (["--model", "mlp"], ("--model mlp", "gpt_char")),
    "images": (["--dataset", "digits", "--partition", "iid"], ("--model gpt-char", "--dataset text")),
    "noise": (["--label-noise", 1], ("--label-noise 1", "tokens")),
    "labels": (["--partition", "dirichlet"], ("--partition dirichlet", "label")),
    "augmentation": (["--aug", 1], ("--aug 1",)),
    "perplexity of images": (
        ["--dataset", "digits", "--model", "mlp", "--partition", "iid", "--stop-at", "val_ppl=2"],
        ("--stop-at val_ppl", "val_loss"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, says = REFUSED[name]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    outcome = run(capsys, *words(folder, tmp_path / "run", "stacked"), *given)
    assert_refused(outcome._replace(err=outcome.err[outcome.err.rindex("fastlocal: error") :]), says)
    assert not (tmp_path / "run").exists()


def test_text_is_not_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["prepare", "--dataset", "text", "--out", tmp_path / "out", "--format", "array"]
    assert "holds text" in run(capsys, *given).err
