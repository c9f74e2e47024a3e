"""resume.pt: to the bit or not at all."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

import pytest
import torch

from fastlocal.checkpoint.file_names import RESUME_NAME
from fastlocal.checkpoint.restore import find_state
from fastlocal.checkpoint.saver import Saver
from fastlocal.checkpoint.state_file import State, read_state_file, state_bytes
from fastlocal.common.atomic_file import write_atomically
from fastlocal.common.errors import UsageError
from fastlocal.distributed.world import World

TENSORS = {
    "row": torch.randn(700, dtype=torch.float64),
    "momentum": torch.randn(5, 400),
    "count": torch.tensor(7),
    "mask": torch.tensor([True, False, True]),
    "half": torch.randn(3, 5).bfloat16(),
    "none": torch.empty(0, 4),
    "transposed": torch.arange(12).reshape(3, 4).T,
}
NUMBERS = {"loss": 0.1 + 0.2, "nothing": None, "bad": [math.inf, -0.0], "text": "é\n", "large": 2**70}


def write(path: Path, state: State) -> None:
    write_atomically(path, lambda file: [file.write(block) for block in state_bytes(state)])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "state", State(NUMBERS, TENSORS))
    state = read_state_file(tmp_path / "state")
    assert repr(state.metadata) == repr(NUMBERS)
    assert list(state.tensors) == list(TENSORS)
    for name, value in TENSORS.items():
        found = state.tensors[name]
        assert found.dtype == value.dtype and torch.equal(found, value)
    state.tensors["row"].zero_()  # a copy of its own
    assert torch.equal(read_state_file(tmp_path / "state").tensors["row"], TENSORS["row"])


def test_every_torn_or_damaged_file_is_named(tmp_path: Path) -> None:
    path, draw = tmp_path / RESUME_NAME, random.Random(0)
    write(path, State(NUMBERS, TENSORS))
    whole = path.read_bytes()
    assert 14_000 < len(whole) < 18_000 and find_state(tmp_path, pytest.fail, World.single()) is not None

    def refused() -> None:
        with pytest.raises(UsageError) as caught:
            find_state(tmp_path, pytest.fail, World.single())
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    for size in reversed(range(len(whole))):
        os.truncate(path, size)
        refused()
    path.write_bytes(whole)
    with path.open("r+b", buffering=0) as file:
        for bit in draw.sample(range(8 * len(whole)), 1000):
            at, changed = bit // 8, whole[bit // 8] ^ (1 << bit % 8)
            os.pwrite(file.fileno(), bytes([changed]), at)
            refused()
            os.pwrite(file.fileno(), whole[at : at + 1], at)
    path.write_bytes(whole + b"\0")
    refused()
    path.write_bytes(whole)
    assert find_state(tmp_path, pytest.fail, World.single()) is not None


def test_the_state_before_takes_the_place_of_a_damaged_one(tmp_path: Path) -> None:
    saver = Saver(tmp_path, every=None, minutes=None, keep=3, sync=lambda: None)
    for number in range(5):
        saver.finish(State({"number": number}, TENSORS))
    names = ["resume.pt", "resume.1.pt", "resume.2.pt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert [read_state_file(tmp_path / name).metadata["number"] for name in names] == [4, 3, 2]
    os.truncate(tmp_path / "resume.pt", 5000)
    said: list[str] = []
    state = find_state(tmp_path, said.append, World.single())
    assert state is not None and state.metadata == {"number": 3}
    assert len(said) == 1 and str(tmp_path / "resume.pt") in said[0] and "resume.1.pt" in said[0]
    saver.finish(State({"number": 5}, TENSORS))
    names = ["resume.pt", "resume.1.pt", "resume.2.pt"]
    found = [read_state_file(tmp_path / name).metadata["number"] for name in names if (tmp_path / name).exists()]
    assert found == [5, 3, 2]


def test_what_goes_wrong_in_the_background_is_raised(tmp_path: Path) -> None:
    saver = Saver(tmp_path / "not there", every=1, minutes=None, keep=2, sync=lambda: None)
    saver.after_round(1, False, lambda: State(NUMBERS, TENSORS))
    saver.close()
    with pytest.raises(FileNotFoundError):
        saver.after_round(2, False, lambda: State(NUMBERS, TENSORS))
