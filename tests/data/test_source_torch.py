"""Worker processes: bad samples, their own ends, any Dataset, and the line about waiting."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import fastlocal
from fastlocal.common.errors import UsageError
from tests.data import sources
from tests.helpers import command_line


@pytest.fixture
def folder(tmp_path: Path) -> list[Path]:
    return sources.jpegs(tmp_path, 12)


def damage(path: Path) -> None:
    """Leave the header and the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_a_corrupt_file_is_named(folder: list[Path]) -> None:
    damage(folder[3])
    with sources.source_of("torch", sources.stored(folder)) as source:
        with pytest.raises(UsageError, match=r"003.jpg cannot be decoded .*--on-bad-sample skip$"):
            source.batch(torch.tensor([[1, 3]]), torch.tensor([0]), 0)


def test_skipped_samples_are_replaced_by_the_next_and_told_once(folder: list[Path]) -> None:
    damage(folder[3])
    folder[4].write_bytes(b"no image")
    ids = torch.tensor([[1, 3, 4, 3, 11]])
    with sources.source_of("torch", sources.stored(folder), on_bad_sample="skip") as source:
        found = [source.batch(ids, torch.tensor([0]), 0) for _ in range(2)]
        first, second = source.pop_messages()
        assert "003.jpg cannot" in first and "004.jpg cannot" in second and not source.pop_messages()
        expected = source.batch(torch.tensor([[1, 5, 5, 5, 11]]), torch.tensor([0]), 0)
    for batch in found:
        assert torch.equal(batch.inputs, expected.inputs) and batch.targets.tolist() == [[1, 5, 5, 5, 1]]


def test_many_bad_samples_in_a_row_are_passed_over_at_once(folder: list[Path], tmp_path: Path) -> None:
    paths = [tmp_path / f"none{number}.jpg" for number in range(400)] + folder[:1]
    begun = 0
    with sources.source_of("torch", sources.stored(paths), on_bad_sample="skip") as source:
        begin = source.engine.begin

        def counted(piece: object) -> None:
            nonlocal begun
            begun += 1
            begin(piece)

        source.engine.begin = counted
        assert source.read_range(0, 401).targets.tolist() == [0] * 401
        assert source.pop_messages()[-1].startswith("400 samples cannot be decoded")
        source.batch(torch.tensor([[3, 300]]), torch.tensor([0]), 0)
    assert begun < 20


def test_where_nothing_can_be_decoded_skipping_ends(folder: list[Path]) -> None:
    for path in folder[1:]:
        damage(path)
    with sources.source_of("torch", sources.stored(folder[1:]), on_bad_sample="skip") as source:
        with pytest.raises(UsageError, match="nor can any other sample"):
            source.batch(torch.tensor([[0]]), torch.tensor([0]), 0)


def test_a_file_of_another_size_is_refused_where_images_reach_the_model_whole(folder: list[Path]) -> None:
    with sources.source_of("torch", sources.stored(folder, side=None)) as source:
        with pytest.raises(UsageError, match=r"image 1 .*it is \d+x\d+ pixels, the first one \d+x\d+"):
            source.batch(torch.tensor([[0, 1]]), torch.tensor([0]), 0)


def test_a_worker_that_dies_is_an_error_and_none_is_left(folder: list[Path]) -> None:
    with sources.source_of("torch", sources.stored(folder), workers=2) as source:
        processes = [process for process, _ in source.engine._workers]
        processes[0].kill()
        processes[0].join()
        with pytest.raises(UsageError, match=r"--nw: a worker process ended \(status -9\)"):
            for _ in range(4):
                source.batch(torch.tensor([[0, 1]]), torch.tensor([0]), 0)
    assert not any(process.is_alive() for process in processes)


LINGER = """
import time, torch
from tests.data import sources
split = sources.cifar()
with sources.source_of("torch", split, workers=2) as train, sources.source_of("torch", split) as test:
    train.batch(torch.tensor([[0, 1]]), torch.tensor([0]), 0)
    test.read_range(0, 10)
    print(*(process.pid for source in (train, test) for process, _ in source.engine._workers), flush=True)
    time.sleep(600)
"""


def test_workers_end_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", LINGER], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert len(workers) == 4 and all(_runs(pid) for pid in workers)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    ends = time.monotonic() + 60
    while any(_runs(pid) for pid in workers) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in workers)
    parent.stdout.close()


def _runs(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rsplit(")", 1)[1].split()[0] not in "ZX"


class Pairs(Dataset[tuple[Tensor, int]]):
    """Pairs that take a while to read."""

    def __init__(self, inputs: Tensor, targets: Tensor, seconds: float = 0.0) -> None:
        self.inputs, self.targets, self.seconds = inputs, targets, seconds
        self.reader = os.getpid()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index and os.getpid() == self.reader:
            raise RuntimeError("is read by worker processes alone")
        time.sleep(self.seconds if index else 0)
        return self.inputs[index], int(self.targets[index])


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(48, 6, generator=generator), torch.randint(0, 3, (48,), generator=generator)


@pytest.mark.parametrize("executor", ["stacked", "looped"])
def test_a_dataset_trains_as_its_tensors_do(tmp_path: Path, executor: str) -> None:
    inputs, targets = samples()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    settings: dict[str, Any] = {"clients": 4, "local_steps": 2, "batch_size": 3, "rounds": 5, "chunk": 3}
    settings |= {"progress": False, "executor": executor, "lr": 0.5}
    tensors = (inputs, targets)
    expected = fastlocal.train(model, tensors, tensors, directory=tmp_path / "tensors", **settings)
    pairs = Pairs(inputs, targets)
    found = fastlocal.train(model, pairs, TensorDataset(inputs, targets), directory=tmp_path / "pairs", **settings)
    # to the last digits: samples lie at other addresses, by which MKL picks its kernels on some processors
    assert len(found.history) == len(expected.history) > 0
    for row, other in zip(found.history, expected.history, strict=True):
        assert row == pytest.approx(other, rel=1e-6)
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_a_dataset_that_fails_is_named(tmp_path: Path) -> None:
    inputs, targets = samples()
    model = nn.Linear(6, 3)

    class Fails(Pairs):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if index == 7:
                raise KeyError("seven")
            return super().__getitem__(index)

    with pytest.raises(ValueError, match=r"sample 7 of the Dataset cannot be decoded \(KeyError: 'seven'\)"):
        fails = Fails(inputs, targets)
        fastlocal.train(model, fails, (inputs, targets), clients=4, batch_size=3, directory=tmp_path / "run")


def test_waiting_for_data_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, targets = samples()
    slow = Pairs(inputs, targets, seconds=0.02)
    fastlocal.train(
        nn.Linear(6, 3), slow, (inputs, targets), clients=2, batch_size=6, local_steps=4, rounds=3, eval_every=3,
        directory=tmp_path / "run",
    )  # fmt: skip
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("input-bound: ")]
    assert len(lines) == 1


@pytest.mark.parametrize("words", [(), ("--chunk", "1"), ("--executor", "looped")])
def test_the_command_line_trains_through_workers_as_from_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    data = command_line.write_npz(tmp_path / "data.npz", channels=3)
    for source in ("resident", "torch"):
        common = ("--source", source, "--executor", "stacked", "--momentum", "0.9", "--aug", "--step1", "3")
        outcome = command_line.run(capsys, *command_line.train_words(data, tmp_path / source), *common, *words)
        assert outcome.status == 0, outcome.err
    assert command_line.metrics(tmp_path / "torch") == command_line.metrics(tmp_path / "resident")


@pytest.mark.parametrize("kind", ["torch", pytest.param("dali", marks=pytest.mark.needs("nvidia.dali"))])
def test_nothing_is_left_running_after_a_run(tmp_path: Path, kind: str) -> None:
    images, targets = torch.arange(12 * 27).remainder(256).to(torch.uint8).view(12, 3, 3, 3), torch.arange(12) % 3
    pair, model = (images, targets), nn.Sequential(nn.Flatten(), nn.Linear(27, 3))
    settings: dict[str, Any] = {"clients": 4, "batch_size": 3, "rounds": 1, "nw": 1, "source": kind}
    settings |= {"mean": (0.5,) * 3, "std": (0.25,) * 3, "directory": tmp_path / "run", "overwrite": True}
    before = {*threading.enumerate(), *multiprocessing.active_children()}
    fastlocal.train(model, pair, pair, **settings)
    assert before.issuperset([*threading.enumerate(), *multiprocessing.active_children()])
    with pytest.raises(UsageError, match="fails on a batch"):
        fastlocal.train(nn.Linear(2, 3), pair, pair, **settings)
    assert before.issuperset([*threading.enumerate(), *multiprocessing.active_children()])
