"""Whole runs on a device that is not there train what the CPU trains, and no round does more than another."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlocal
from fastlocal.executors import cuda_graphs
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.telemetry.base import Logger, RoundReport
from tests.helpers import command_line, small_models
from tests.rehearsal.conftest import Rehearsal
from tests.rehearsal.device import Device
from tests.training.test_loop_equivalences import run

HARD = ["--momentum", "0.9", "--nesterov", "1", "--label-noise", "1", "--noise-p", "0.3", "--aug", "1", "--debug", "1"]


def words_of(folder: Path, device: str, *words: str, channels: int = 3, side: int = 8) -> list[str]:
    data = command_line.write_npz(folder / "data.npz", train=24, test=8, channels=channels, side=side)
    given = [
        "train",
        "--dataset",
        "npz",
        "--data-pth",
        str(data),
        "--log-pth",
        str(folder / device),
        "--device",
        device,
    ]
    given += ["--batch-size", "2", "--total-batch-size", "6", "--steps-per-epoch", "2", "--start-lr", "0.01"]
    return [*given, "--tune-seconds", "0", "--executor", "stacked", *words]


def assert_same_run(folder: Path, tolerance: float) -> None:
    """The runs in folder/cuda and folder/cpu came to the same."""
    ours, theirs = (command_line.metrics(folder / device) for device in ("cuda", "cpu"))
    assert len(ours) == len(theirs) > 0
    for row, other in zip(ours, theirs, strict=True):
        assert row == pytest.approx(other, rel=tolerance, abs=tolerance)
    models = [torch.load(folder / device / "latest.pt", weights_only=True) for device in ("cuda", "cpu")]
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=tolerance, atol=tolerance)


FAMILIES = {
    "mlp": ["--model", "mlp", *HARD],
    "cnn": ["--model", "cnn", "--conv-strategy", "grouped,conv1=triton", "--clip-norm", "0.5", *HARD],
}
ALL_FAMILIES = {
    "resnet20_gn": ["--model", "resnet20_gn", "--chunk", "2", *HARD],
    "resnet20": ["--model", "resnet20", "--bn-batches", "2", "--group-weight", "1"],
    "vgg11": ["--model", "vgg11"],
    "torchvision": [
        *("--model", "torchvision.shufflenet_v2_x0_5", "--bn-batches", "3", "--start-lr", "0.001"),
        *("--batch-size", "8", "--total-batch-size", "16", "--steps-per-epoch", "1"),
        *("--precision", "fp64"),  # BatchNorms of one pixel: in fp32 rounding grows to 5 % in two rounds
    ],
}


def goes_on_as_on_the_cpu(
    words: list[str], folder: Path, rehearsed: Rehearsal, capsys: pytest.CaptureFixture[str], **sizes: int
) -> None:
    """Train one epoch, go on with another, and compare with two epochs of the CPU."""
    with rehearsed() as device:
        for more in (["--epochs", "1"], ["--epochs", "2", "--continue"]):
            result = command_line.run(capsys, *words_of(folder, "cuda", *words, "--step1", "2", *more, **sizes))
            assert result.status == 0, result.err
    assert device.count("graph") > 0, "no step was captured: " + result.out
    words = words_of(folder, "cpu", *[word.replace("triton", "loop") for word in words], "--step1", "2", **sizes)
    assert command_line.run(capsys, *words, "--epochs", "2").status == 0
    assert_same_run(folder, 2e-4)


@pytest.mark.parametrize("family", [pytest.param("mlp", marks=pytest.mark.slow), "cnn"])
def test_a_run_that_goes_on_is_that_of_the_cpu(
    family: str, tmp_path: Path, rehearsed: Rehearsal, capsys: pytest.CaptureFixture[str]
) -> None:
    goes_on_as_on_the_cpu(FAMILIES[family], tmp_path, rehearsed, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_family_of_models(
    family: str, tmp_path: Path, rehearsed: Rehearsal, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"side": 32} if family in ("vgg11", "torchvision") else {}
    goes_on_as_on_the_cpu(ALL_FAMILIES[family], tmp_path, rehearsed, capsys, **sizes)


COHORTS = {
    "kept": [
        *("--client-state", "keep", "--server-optimizer", "adam", "--clients", "3", "--chunk", "2"),
        *("--eval-clients", "1", "--step1", "2", "--algorithm", "scaffold"),
    ],
    "unequal": [
        *("--partition", "quantity", "--local-epochs", "1.5", "--last-batch", "partial", "--stragglers", "0.3"),
        *("--client-state", "keep", "--client-epochs", "continue", "--clients", "5", "--chunk", "3"),
        *("--algorithm", "feddyn", "--feddyn-alpha", "0.1"),
    ],
    "adamw": [
        *("--client-optimizer", "adamw", "--adam-eps", "1e-3", "--client-state", "keep", "--clients", "5"),
        *("--partition", "quantity", "--local-epochs", "1.5", "--chunk", "3", "--clip-norm", "1", "--wd", "0.1"),
    ],
    "dropped": ["--client-state", "average", "--clients-drop", "0.3", "--server-optimizer", "slowmo", "--clients", "5"]
    + ["--step1", "2"],
}


@pytest.mark.parametrize("kind", [pytest.param("dropped", marks=pytest.mark.slow), "kept", "unequal", "adamw"])
def test_cohorts_are_those_of_the_cpu(
    kind: str,
    tmp_path: Path,
    rehearsed: Rehearsal,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where a round's number of clients is one that is not captured."""
    monkeypatch.setattr(cuda_graphs, "MAX_PROGRAMS", 1)
    data = command_line.write_npz(tmp_path / "data.npz", train=24, test=8, side=8)
    words = ["train", "--dataset", "npz", "--data-pth", data, "--partition", "iid", "--population", "6", *COHORTS[kind]]
    words += ["--batch-size", "2", "--client-lr", "0.05", "--executor", "stacked"]
    words += [] if kind == "adamw" else ["--momentum", "0.9"]
    words += ["--tune-seconds", "0", "--model", "mlp"]
    with rehearsed() as device:
        for more in (["--rounds", "2"], ["--rounds", "5", "--continue"]):
            result = command_line.run(capsys, *words, *more, "--device", "cuda", "--log-pth", tmp_path / "cuda")
            assert result.status == 0, result.err
    assert device.count("graph") > 0
    words += ["--rounds", "5", "--device", "cpu", "--log-pth", tmp_path / "cpu"]
    assert command_line.run(capsys, *words).status == 0
    assert_same_run(tmp_path, 2e-4)


def test_an_older_gpu_captures_steps_of_plain_torch(
    tmp_path: Path, rehearsed: Rehearsal, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "cnn", "--epochs", "1", *HARD]
    with rehearsed(capability=(7, 5)) as device:
        result = command_line.run(capsys, *words_of(tmp_path, "cuda", *words, "--cuda-graph", "1"))
    assert result.status == 0 and device.count("graph") > 0, result.err
    assert command_line.run(capsys, *words_of(tmp_path, "cpu", *words)).status == 0
    assert_same_run(tmp_path, 1e-4)


@pytest.mark.parametrize(
    "precision", ["bf16", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tf32", "fp64"))]
)
def test_steps_compute_in_the_precision_that_was_asked_for(
    precision: str, tmp_path: Path, rehearsed: Rehearsal
) -> None:
    values: dict[str, Any] = {"executor": "stacked", "momentum": 0.9, "tune_seconds": 0.0, "epochs": 1}
    data = small_models.images()
    with rehearsed() as device:
        loop = run(
            tmp_path / "cuda", small_models.make("groupnorm"), data, device="cuda", precision=precision, **values
        )
        ours = loop.global_model.flat_params.cpu()
    assert device.count("graph") > 0
    products = {dtypes for name, dtypes in device.operands if name in ("_forward_kernel", "convolution")}
    dtype = {"bf16": torch.bfloat16, "tf32": torch.float32, "fp64": torch.float64}[precision]
    assert (dtype, dtype) in products
    wide = {name for name, dtypes in device.operands if torch.float64 in dtypes}
    assert precision == "fp64" or wide <= {"_to_copy", "add", "sum"}, "counts of right predictions alone are wide"
    plain = run(tmp_path / "cpu", small_models.make("groupnorm"), data, precision="fp64", **values)
    theirs = plain.global_model.flat_params
    assert (ours.double() - theirs.double()).norm() < {"bf16": 0.02, "tf32": 1e-5, "fp64": 1e-12}[
        precision
    ] * theirs.norm()


class Rounds(Logger):
    """What the device was told in each round: kinds of events and how many."""

    def __init__(self, device: Device) -> None:
        self._device, self._seen = device, 0
        self.counts: list[Counter[str]] = []

    def round(self, report: RoundReport) -> None:
        events = self._device.events[self._seen :]
        self._seen = len(self._device.events)
        self.counts.append(Counter(f"{kind} {name}" for kind, name in events))


@pytest.mark.parametrize(
    ("name", "graph"),
    [("words", False), ("batchnorm", True), pytest.param("batchnorm", False, marks=pytest.mark.slow)],
)
def test_every_round_launches_the_same_and_no_step_waits(
    name: str, graph: bool, tmp_path: Path, rehearsed: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = small_models.sentences() if name == "words" else small_models.images()
    within: list[str] = []
    run_round = StackedExecutor.run_round

    def watched(self: StackedExecutor, *given: Any) -> Any:
        seen = len(active.events)
        result = run_round(self, *given)
        within.extend(f"{kind} {what}" for kind, what in active.events[seen:] if kind != "launch")
        return result

    monkeypatch.setattr(StackedExecutor, "run_round", watched)
    values: dict[str, Any] = {"precision": "fp32", "chunk": 3, "cuda_graph": graph, "tune_seconds": 0.0}
    values |= {"momentum": 0.9, "clip_norm": 0.5, "eval_freq1": 10**6, "aug": name != "words", "executor": "stacked"}
    with rehearsed() as active:
        rounds = Rounds(active)
        loop = run(tmp_path / "cuda", small_models.make(name), data, rounds, device="cuda", **values)
        ours = loop.global_model.flat_params.cpu()
    assert len(rounds.counts) >= 5
    for counts in rounds.counts[3:-1]:  # the last one plans no other
        assert counts == rounds.counts[2]
    assert (rounds.counts[2]["launch graph"] == 2 * 2) == graph  # H = 2 in chunks of 3 and 2 clients
    assert within == []
    theirs = run(tmp_path / "cpu", small_models.make(name), data, **{**values, "cuda_graph": None})
    torch.testing.assert_close(ours, theirs.global_model.flat_params, rtol=1e-4, atol=1e-5)


def test_the_python_api_times_what_there_is(tmp_path: Path, rehearsed: Rehearsal) -> None:
    data = torch.randn(24, 3, 6, 6), torch.arange(24) % 4
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    with rehearsed() as device:
        result = fastlocal.train(
            module, data, data, clients=3, batch_size=2, rounds=3, directory=tmp_path / "run", device="cuda"
        )
        assert device.count("graph") > 0 and next(result.model.parameters()).is_cuda


class Habits(nn.Module):
    """Looks tokens up, drops, counts its steps and follows its inputs."""

    steps: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table, self.output = nn.Embedding(9, 6, padding_idx=0), nn.Linear(6, 3)
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = nn.functional.dropout(self.table(tokens).mean(dim=1), 0.4, self.training)
        self.steps += 1
        self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(dim=0)
        return self.output(hidden - self.mean)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"chunk": 2},
        {"chunk": 2, "client_store": "disk"},
        {"local_steps": 1, "local_epochs": 0.8, "partition": "quantity", "client_state": "average"},
    ],
    ids=["resident", "chunks", "disk", "unequal"],
)
def test_draws_and_buffers_of_clients_are_those_of_a_cpu(
    changes: dict[str, Any], tmp_path: Path, rehearsed: Rehearsal
) -> None:
    """In captured steps, where a chunk's buffers wait on the host or on disk, and where a client has no step left."""
    data = torch.arange(240).reshape(60, 4) % 9, torch.arange(60) % 3
    torch.manual_seed(0)
    module, states = Habits(), []
    settings: dict[str, Any] = {"clients": 5, "local_steps": 3, "batch_size": 4, "rounds": 2, "momentum": 0.5}
    settings |= {"executor": "stacked", "tune_seconds": 0.0, "progress": False} | changes
    for device in ("cuda", "cpu"):
        with rehearsed() if device == "cuda" else contextlib.nullcontext() as seen:
            run_ = fastlocal.train(module, data, data, directory=tmp_path / device, device=device, **settings)
            states.append({name: value.cpu() for name, value in run_.model.state_dict().items()})
            assert seen is None or seen.count("graph") > 0
    assert "partition" in changes or int(states[0]["steps"]) == 6
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-4, atol=1e-5, msg=name)
