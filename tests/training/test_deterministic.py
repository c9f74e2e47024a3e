"""--deterministic 1: the same command gives the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fastlocal
from fastlocal.config.serialization import read_config
from fastlocal.params.precision import preserve_torch_flags
from tests.helpers import command_line


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    with preserve_torch_flags():
        yield


@pytest.mark.parametrize("executor", ["stacked", "looped"])
@pytest.mark.parametrize("model", ["cnn", "resnet20"])
def test_repeats_are_bit_identical(
    model: str, executor: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = command_line.write_npz(tmp_path / "data.npz", train=32, channels=3)
    flags = ["--model", model, "--executor", executor, "--deterministic", "--label-noise", "--momentum", "0.9"]
    for name in ("one", "two"):
        outcome = command_line.run(capsys, *command_line.train_words(data, tmp_path / name), *flags)
        assert outcome.status == 0
    assert torch.are_deterministic_algorithms_enabled()
    one, two = (torch.load(tmp_path / name / "latest.pt") for name in ("one", "two"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert command_line.metrics(tmp_path / "one") == command_line.metrics(tmp_path / "two")
    machine, again = (read_config(tmp_path / name / "config.json").machine for name in ("one", "two"))
    assert machine.deterministic and machine.conv_strategy == again.conv_strategy
    choices = [line for line in (outcome.err + outcome.out).splitlines() if " -> " in line]
    assert all("not timed" in line for line in choices), "times differ between repeats"


def test_the_setting_ends_with_the_run(tmp_path: Path) -> None:
    data = torch.randn(20, 4), torch.arange(20) % 3
    model = torch.nn.Linear(4, 3)
    fastlocal.train(
        model, data, data, clients=2, batch_size=2, rounds=1, directory=tmp_path / "run", deterministic=True
    )
    assert not torch.are_deterministic_algorithms_enabled()
