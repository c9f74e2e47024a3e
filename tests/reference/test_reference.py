"""The runs of the reference code, reproduced through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastlocal.cli import main
from tests.reference.start_weights import fingerprint, start_weights

HERE = Path(__file__).parent
CASES = ("post_phase_bn", "three_phases_gn", "synchronous_sgd")
# float32 rounding noise grows tenfold every two steps with BatchNorm, so that case is compared in float64 alone
FLOAT32_CASES = (("three_phases_gn", "stacked"), ("synchronous_sgd", "looped"))
TOLERANCE = {"fp64": 1e-9, "fp32": 1e-4}


def reference_words(case: str, directory: Path, *flags: str) -> tuple[list[str], dict[str, Any]]:
    """The command line of a case that writes to `directory`, and what the reference got."""
    expected: dict[str, Any] = json.loads((HERE / f"{case}.json").read_text())
    start = directory.parent / "start.pt"
    torch.save(start_weights(expected["tensors"]), start)
    words = ["train", "--dataset", "npz", "--data-pth", str(HERE / expected["images"]), "--resume-pth", str(start)]
    words += [word for name, value in expected["flags"].items() for word in (name, str(value))]
    words += ["--mean", *map(str, expected["mean"]), "--std", *map(str, expected["std"])]
    words += ["--log-pth", str(directory), "--debug", "1", "--device", "cpu", *flags]
    return words, expected


def reproduce(case: str, directory: Path, *flags: str) -> dict[str, Any]:
    """Run a case through the command line into `directory`; returns what the reference got."""
    words, expected = reference_words(case, directory, *flags)
    assert main(words) == 0
    return expected


def assert_same_model(path: Path, expected: dict[str, list[float]], precision: str) -> None:
    state = torch.load(path, weights_only=True)
    assert list(state) == list(expected)
    for name, (total, norm, probe) in expected.items():
        got = fingerprint({name: state[name]})[name]
        scale = max(norm, 1e-12) * state[name].numel() ** 0.5
        for value, wanted in zip(got, (total, norm, probe), strict=True):
            assert value == pytest.approx(wanted, rel=0, abs=TOLERANCE[precision] * scale), (path.name, name)
        if state[name].is_floating_point():
            assert state[name].dtype == (torch.float64 if precision == "fp64" else torch.float32)


def assert_same_run(directory: Path, expected: dict[str, Any], precision: str) -> None:
    checkpoints = {path.name for path in directory.glob("*.pt") if not path.name.startswith("resume.")}
    assert checkpoints == set(expected["checkpoint_files"])
    for name, tensors in expected["checkpoints"].items():
        assert_same_model(directory / name, tensors, precision)
    assert_same_model(directory / "latest.pt", expected["latest"], precision)

    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == len(expected["metrics"])
    loose = 1e-8 if precision == "fp64" else 1e-3
    for line, wanted in zip(lines, expected["metrics"], strict=True):
        assert set(line) == set(wanted)
        for key, value in wanted.items():
            # one float32 prediction in a hundred may tip over
            slack = 0.011 if precision == "fp32" and "acc" in key else loose
            assert line[key] == pytest.approx(value, rel=loose, abs=slack), (key, line)

    steps = [json.loads(line) for line in (directory / "steps.jsonl").read_text().splitlines()]
    clients = expected["flags"]["--total-batch-size"] // expected["flags"]["--batch-size"]
    assert [(row["step"], row["client"]) for row in steps] == [divmod(i, clients) for i in range(len(steps))]
    assert len(steps) == len(expected["client_steps"])
    for row, (_, rate, loss, _) in zip(steps, expected["client_steps"], strict=True):
        assert row["rate"] == pytest.approx(rate, rel=1e-8)
        assert row["loss"] == pytest.approx(loss, rel=1e-6 if precision == "fp64" else 1e-3)


@pytest.mark.parametrize(
    ("case", "flags"),
    [
        ("post_phase_bn", ("--executor", "looped", "--chunk", "2")),
        ("three_phases_gn", ("--executor", "threaded", "--workers", "3", "--chunk", "3")),
        ("synchronous_sgd", ("--executor", "stacked")),
    ],
)
def test_reference_in_float64(case: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    """Each case by another executor; that they train alike is in tests/executors."""
    expected = reproduce(case, tmp_path / "run", "--precision", "fp64", *flags)
    assert_same_run(tmp_path / "run", expected, "fp64")
    expected["client_steps"][-1][2] *= 1 + 1e-5
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "run", expected, "fp64")


@pytest.mark.parametrize(("case", "executor"), FLOAT32_CASES)
def test_reference_in_float32(case: str, executor: str, tmp_path: Path) -> None:
    expected = reproduce(case, tmp_path / "run", "--executor", executor)
    assert_same_run(tmp_path / "run", expected, "fp32")
