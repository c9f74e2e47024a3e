"""Checkpoints: what is refused and why, that files cannot run code, and that a save is all or nothing."""

from __future__ import annotations

import gzip
import os
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastlocal.checkpoint.model_file import load_strictly, read_state, save_model
from fastlocal.checkpoint.state_file import State, state_bytes
from fastlocal.common.atomic_file import write_atomically
from fastlocal.common.errors import UsageError
from fastlocal.models import build
from tests.helpers.command_line import metrics, run, train_words, tree, write_npz

PAYLOAD = "touched"


class RunsCode:
    """Makes a folder in the working folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (PAYLOAD,)


def mlp() -> torch.nn.Module:
    return build("mlp", in_channels=1, classes=4, image_size=(8, 8))


def write_text(path: Path) -> None:
    path.write_text("start weights\n" * 50)


def scripted(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is deprecated
        torch.jit.script(mlp()).save(path)


def write_state(path: Path) -> None:
    path.write_bytes(b"".join(state_bytes(State({"rounds": 1}, {"row": torch.ones(3)}))))


STATE = mlp().state_dict()
FILES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "missing": (None, ("no such file",)),
    "folder": (Path.mkdir, ("is a folder",)),
    "empty": (Path.touch, ("truncated",)),
    "text": (write_text, ("truncated or no checkpoint",)),
    "zip": (lambda path: np.savez(path.open("wb"), a=1), ("truncated or no checkpoint",)),
    "module": (mlp(), ("MLP", "state_dict")),
    "code": (RunsCode(), ("mkdir", "state_dict")),
    "code within": (STATE | {"extra": RunsCode()}, ("mkdir", "state_dict")),
    "raw pickle": (lambda path: path.write_bytes(pickle.dumps(RunsCode())), ("no checkpoint",)),
    "TorchScript": (scripted, ("TorchScript",)),
    "list": ([1, 2], ("holds a list",)),
    "nothing": ({}, ("holds nothing",)),
    "nested": ({"epoch": 3, "state_dict": STATE}, ("'epoch' is a int", "state_dict alone")),
    "optimizer": (torch.optim.SGD(mlp().parameters()).state_dict(), ("'state' is a dict",)),
    "other model": (
        build("cnn", in_channels=1, classes=4, image_size=(8, 8)).state_dict(),
        ("'hidden.weight' is missing", "'conv1.weight'", "--model"),
    ),
    "DataParallel": (
        {f"module.{name}": value for name, value in STATE.items()},
        ("'hidden.weight' is missing", "'module.hidden.weight'", "take 'module.' off"),
    ),
    "one key less": ({name: STATE[name] for name in list(STATE)[:-1]}, ("'linear.bias' is missing",)),
    "one key more": (STATE | {"linear.scale": torch.ones(4)}, ("'linear.scale' is not in the model",)),
    "other shape": (STATE | {"hidden.bias": torch.zeros(64)}, ("'hidden.bias' has shape (64,)", "needs (128,)")),
    "whole numbers": (STATE | {"linear.bias": torch.zeros(4, dtype=torch.int64)}, ("'linear.bias' is torch.int64",)),
    "sparse": (STATE | {"hidden.weight": STATE["hidden.weight"].to_sparse()}, ("'hidden.weight'", "sparse")),
    "no values": (STATE | {"hidden.weight": STATE["hidden.weight"].to("meta")}, ("'hidden.weight'", "meta")),
    "NaN": (STATE | {"hidden.bias": torch.full((128,), torch.nan)}, ("'hidden.bias' holds NaN or infinity",)),
    "state of a run": (lambda path: write_state(path), ("is the saved state of a run", "latest.pt beside it")),
    "torn state of a run": (
        lambda path: (write_state(path), os.truncate(path, 30)),
        ("is the saved state of a run", "--continue"),
    ),
    "folder of a run": (lambda path: (path.mkdir(), torch.save(1, path / "latest.pt")), ("in it is latest.pt",)),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x")), ("is compressed with gzip",)),
    "Git LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), ("git lfs pull",)),
    "web page": (lambda path: path.write_text("<!DOCTYPE html><html>"), ("is a web page",)),
    "pickled by others": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), ("torch.save did not write",)),
    "Lightning": (
        {"epoch": 1, "state_dict": {f"model.{name}": value for name, value in STATE.items()}, "loops": {}},
        ("'epoch' is a int", "saved from its 'state_dict'"),
    ),
    "averaged and distributed": (
        {"n_averaged": torch.tensor(3)} | {f"module.module.{name}": value for name, value in STATE.items()},
        ("'hidden.weight' is missing", "take 'module.' off"),
    ),
    "infinity": (STATE | {"linear.bias": torch.tensor([0, 0, torch.inf, 0])}, ("'linear.bias' holds NaN or inf",)),
}


def write(path: Path, held: Any) -> None:
    if callable(held) and not isinstance(held, torch.nn.Module):
        held(path)
    elif held is not None:
        torch.save(held, path)


@pytest.mark.parametrize("case", FILES)
def test_what_is_no_start_point(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through both commands: status 2, one line with the file and what is wrong, and nothing run or written."""
    monkeypatch.chdir(tmp_path)
    held, says = FILES[case]
    data, path = write_npz(tmp_path / "tiny.npz"), tmp_path / "start.pt"
    write(path, held)
    before = tree(tmp_path)
    words = ["--dataset", "npz", "--data-pth", data]
    for flag, command in (
        (f"--resume-pth {path}", (*train_words(data, tmp_path / "run"), "--resume-pth", path)),
        (f"CHECKPOINT {path}", ("evaluate", path, *words)),
    ):
        outcome = run(capsys, *command)
        assert (outcome.status, outcome.out) == (2, "")
        assert outcome.err.startswith("fastlocal: error: ") and outcome.err.count("\n") == 1
        for part in (flag, *says):
            assert part in outcome.err
        assert len(outcome.err) < 400
    assert tree(tmp_path) == before and not Path(PAYLOAD).exists()


@pytest.mark.parametrize("new_format", [True, False])
def test_truncated_anywhere(new_format: bool, tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole.pt", tmp_path / "torn.pt"
    torch.save(STATE, whole, _use_new_zipfile_serialization=new_format)
    content = whole.read_bytes()
    for size in [*range(0, len(content), len(content) // 40), *range(len(content) - 60, len(content), 7)]:
        torn.write_bytes(content[:size])
        with pytest.raises(UsageError, match="--resume-pth .*torn.pt"):
            read_state(torn, "--resume-pth")


@given(position=st.integers(0, 3000), byte=st.integers(0, 255))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_damaged_byte(position: int, byte: int, tmp_path: Path) -> None:
    """It still loads, or it is refused: nothing else."""
    path = tmp_path / "start.pt"
    torch.save(STATE, path)
    content = bytearray(path.read_bytes())
    content[position] = byte
    path.write_bytes(content)
    try:
        assert read_state(path, "--resume-pth")
    except UsageError as refused:
        assert str(refused).startswith(f"--resume-pth {path}: ")


def averaged(path: Path) -> None:
    module = torch.optim.swa_utils.AveragedModel(mlp())
    module.module.load_state_dict(STATE)
    torch.save(module.state_dict(), path)


def tensors_file(path: Path, state: dict[str, Tensor] = STATE) -> None:
    from safetensors.torch import save_file

    save_file(state, path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("swa.pt", averaged),
        pytest.param("start.safetensors", tensors_file, marks=pytest.mark.needs("safetensors")),
        pytest.param("start.SafeTensors", tensors_file, marks=pytest.mark.needs("safetensors")),
        pytest.param("model.bin", tensors_file, marks=pytest.mark.needs("safetensors")),
    ],
)
def test_other_files_that_hold_a_model(
    name: str, write: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through both commands, to the bit: a run without a rate leaves the weights as they were."""
    data, path, plain = write_npz(tmp_path / "tiny.npz"), tmp_path / name, tmp_path / "plain.pt"
    write(path)
    torch.save(STATE, plain)
    trained = run(capsys, *train_words(data, tmp_path / "run"), "--resume-pth", path, "--start-lr", "0")
    assert trained.status == 0, trained.err
    written = torch.load(tmp_path / "run" / "latest.pt", weights_only=True)
    assert all(torch.equal(written[key], value) for key, value in STATE.items())
    said = [run(capsys, "evaluate", file, "--dataset", "npz", "--data-pth", data).out for file in (path, plain)]
    assert said[0] == said[1] != ""


@pytest.mark.needs("safetensors")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_safetensors_of_other_precisions(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    tensors_file(path, {name: value.to(dtype) for name, value in STATE.items()})
    found = read_state(path, "--resume-pth")
    assert all(torch.equal(found[name], value.to(dtype)) for name, value in STATE.items())


@pytest.mark.needs("safetensors")
def test_a_damaged_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    tensors_file(path)
    whole = path.read_bytes()
    for content in (b"", whole[:5], whole[:60], whole[:-1], b"start weights\n" * 9):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"^--resume-pth .*start.safetensors: is no whole file of safetensors \("):
            read_state(path, "--resume-pth")


def test_safetensors_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    path = tmp_path / "start.safetensors"
    path.write_bytes(b"\2\0\0\0\0\0\0\0{}")
    with pytest.raises(UsageError, match=r"needs the package safetensors .*pip install 'fastlocal\[safetensors\]'"):
        read_state(path, "CHECKPOINT")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "start.pt"
    torch.save({name: value.to(dtype) for name, value in STATE.items()}, path)
    module = mlp()
    load_strictly(module, read_state(path, "--resume-pth"), path, "--resume-pth")
    for name, value in module.state_dict().items():
        assert torch.equal(value, STATE[name].to(dtype).float())


def test_a_run_in_float64_starts_from_every_digit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, start = write_npz(tmp_path / "tiny.npz"), tmp_path / "start.pt"
    state = {name: value.double() / 3 for name, value in STATE.items()}
    torch.save(state, start)
    words = [*train_words(data, tmp_path / "run"), "--precision", "fp64", "--resume-pth", str(start)]
    assert run(capsys, *words, "--eval-on-start", "--start-lr", "0").status == 0
    written = torch.load(tmp_path / "run" / "latest.pt", weights_only=True)
    assert all(torch.equal(written[name], state[name]) for name in state)
    single = [*train_words(data, tmp_path / "single"), "--resume-pth", str(start), "--start-lr", "0"]
    assert run(capsys, *single).status == 0
    written = torch.load(tmp_path / "single" / "latest.pt", weights_only=True)
    assert all(torch.equal(written[name], state[name].float()) for name in state)


def test_counters_of_batchnorm_are_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run goes on from what another one wrote, BatchNorm's whole-number counters included."""
    data = write_npz(tmp_path / "tiny.npz")
    words = ["--model", "resnet20", "--steps-per-epoch", "1", "--bn-batches", "2"]
    assert run(capsys, *train_words(data, tmp_path / "first"), *words).status == 0
    start = tmp_path / "first" / "latest.pt"
    outcome = run(capsys, *train_words(data, tmp_path / "second"), *words, "--resume-pth", start, "--eval-on-start")
    assert outcome.status == 0, outcome.err
    counter = "bn1.num_batches_tracked"
    counts = [torch.load(tmp_path / name / "latest.pt", weights_only=True)[counter] for name in ("first", "second")]
    assert [int(count) for count in counts] == [3, 8]
    assert len(metrics(tmp_path / "second")) == 2


def test_a_plain_module_takes_what_is_saved(tmp_path: Path) -> None:
    module = mlp().double()
    save_model(tmp_path / "model.pt", module.state_dict())
    written: dict[str, Tensor] = torch.load(tmp_path / "model.pt", weights_only=True)
    assert list(written) == list(STATE) and type(written) is dict
    mlp().load_state_dict(written)
    assert os.stat(tmp_path / "model.pt").st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_failing_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "latest.pt"
    path.write_text("before")

    def half(file: Any) -> None:
        file.write(b"half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_atomically(path, half)
    assert path.read_text() == "before" and tree(tmp_path) == {"latest.pt"}
