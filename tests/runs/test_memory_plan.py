"""The memory that a run is going to take: what is predicted, what is refused, and which chunk is picked."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from fastlocal.common.machine import free_bytes, resident_bytes
from fastlocal.data.sources.resident import ResidentSource
from fastlocal.data.types import Split
from fastlocal.executors.base import LocalProblem
from fastlocal.params.losses import cross_entropy
from fastlocal.params.param_layout import param_layout
from fastlocal.params.precision import numerics
from fastlocal.runs.activations import Activations, activations
from fastlocal.runs.memory_plan import Needs
from tests.helpers.command_line import run, train_words, write_npz

CPU = torch.device("cpu")
MIB = 2**20
NEEDS = Needs(
    torch=100 * MIB,
    data=10 * MIB,
    row=2 * MIB,
    item=4,
    activations=Activations(fixed=MIB, per_sample=MIB, largest=MIB // 4),
    clients=64,
    batch=8,
    moments=1,
    state=0,
    in_place=True,
    workers=1,
    device="cuda",
    copies=2,
    replayed=False,
)


def problem(module: nn.Module, *size: int) -> LocalProblem:
    split = Split(torch.randn(6, *size), torch.zeros(6, dtype=torch.int64))
    numbers = numerics("fp32", CPU)
    source = ResidentSource(split, mean=None, std=None, augment=False, seed=0, device=CPU, dtype=numbers.dtype)
    return LocalProblem(
        module=module,
        layout=param_layout(module, group_weight=False),
        source=source,
        loss=cross_entropy,
        topk=(1,),
        noise=None,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
        numerics=numbers,
    )


@pytest.mark.parametrize("stacked", [False, True])
def test_activations_are_those_that_autograd_keeps(stacked: bool) -> None:
    """Inputs [batch, 5], ReLU's output [batch, 64] once for both of its readers, log-softmax [batch, 3], labels."""
    module = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 3))
    found = activations(problem(module, 5), stacked=stacked, strategies="loop")
    assert found.per_sample in range(4 * (5 + 64 + 3) + 8, 4 * (5 + 64 + 3) + 12), "a mask under vmap more"
    assert found.largest == 4 * 64
    assert found.fixed <= 64, "parameters are not activations"


def test_columns_of_convolutions_count_as_the_largest() -> None:
    """A step by im2col holds the 2 * 9 numbers of each of 6 * 6 windows."""
    module = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(108, 3))
    by_way = {way: activations(problem(module, 2, 6, 6), stacked=True, strategies=way) for way in ("loop", "im2col")}
    assert by_way["im2col"].largest == 4 * 2 * 9 * 36 > by_way["loop"].largest


def test_counting_leaves_random_states_and_statistics_alone() -> None:
    module = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    made = problem(module, 5)
    state = torch.get_rng_state()
    activations(made, stacked=False, strategies="loop")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_parts_on_a_gpu() -> None:
    """16 of 64 clients resident: their momenta alone are on the device, and activations of 9 MiB each."""
    parts = NEEDS.parts(16)
    assert parts == {
        "torch itself": 100 * MIB,
        "data set": 10 * MIB,
        "parameters": 16 * 2 * MIB + 4 * 2 * MIB + 4 * MIB,
        "gradients": 32 * MIB,
        "momentum": 32 * MIB,
        "activations": 16 * 9 * MIB,
        "workspace": max(4 * 16 * 2 * MIB, 3 * 250 * MIB - (16 * 9 + 32) * MIB),
    }
    assert NEEDS.total(16) == sum(parts.values())


def test_on_a_cpu_all_momenta_stay_and_one_at_a_time_needs_the_activations_of_one() -> None:
    looped = dataclasses.replace(NEEDS, device="cpu", in_place=False)
    parts = looped.parts(16)
    assert parts["momentum"] == 64 * 2 * MIB
    assert parts["activations"] == 9 * MIB and parts["gradients"] == 2 * MIB
    two = dataclasses.replace(looped, workers=2)
    assert two.parts(16)["activations"] == 27 * MIB and two.parts(1)["activations"] == 18 * MIB, "and the main thread's"


def test_state_on_disk_takes_three_chunks_of_memory_and_one_of_a_gpu() -> None:
    on_disk = dataclasses.replace(NEEDS, state=3 * MIB, on_disk=True)
    for device, chunks in (("cpu", 3), ("cuda", 1)):
        parts = dataclasses.replace(on_disk, device=device).parts(16)
        assert (parts["momentum"], parts["client buffers"]) == (chunks * 16 * 2 * MIB, chunks * 16 * 3 * MIB)


def test_buffers_that_forward_changes_take_a_row_each() -> None:
    with_buffers = dataclasses.replace(NEEDS, state=3 * MIB)
    assert with_buffers.total(8) - NEEDS.total(8) == with_buffers.parts(8)["client buffers"] == 8 * 3 * MIB


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("stacked", [False, True])
def test_the_largest_chunk_fits_and_one_more_does_not(device: str, stacked: bool) -> None:
    needs = dataclasses.replace(NEEDS, device=device, in_place=stacked)
    for limit in (0, needs.total(1) - 1, needs.total(1), needs.total(1) + 77 * MIB, needs.total(64), 2**50):
        chunk = needs.largest_chunk(limit)
        assert chunk == 0 or needs.total(chunk) <= limit
        assert chunk == needs.clients or needs.total(chunk + 1) > limit


def test_a_system_that_does_not_say_what_is_free(tmp_path: Path) -> None:
    """Without /proc the largest resident set stands for the present one, and all memory for what is free."""
    assert 0.5 * resident_bytes() < resident_bytes(tmp_path) and free_bytes() < free_bytes(tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal: 10 kB\nMemAvailable: 7 kB\n")
    assert free_bytes(tmp_path) == 7 * 1024


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    data = write_npz(tmp_path / "data.npz", side=32, channels=3)
    train = train_words(data, tmp_path / "run")[1:]
    return [*train, "--replacement", "--total-batch-size", "512", "--executor", "stacked"]


def test_plan_prints_every_part_and_the_chunk(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "plan", *words, "--momentum", "0.9")
    assert done.status == 0, done.err
    found = re.findall(r"^([a-z ]+?)\s+([\d.,]+) MiB", done.out, re.MULTILINE)
    sizes = {name: float(size.replace(",", "")) for name, size in found}
    assert sizes["momentum"] == pytest.approx(64 * (3072 * 128 + 128 + 128 * 4 + 4) * 4 / MIB, abs=0.1)
    assert sum(sizes[name] for name in sizes if name not in ("peak", "limit")) == pytest.approx(sizes["peak"], abs=1)
    assert "at most --chunk 64 of 64 clients fits" in done.out


def test_no_gradients_of_stacked_steps_are_copied_on_a_cpu(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    grads = 64 * (3072 * 128 + 128 + 128 * 4 + 4) * 4 / MIB
    for flags in ([], ["--clip-norm", "1"]):
        found = re.search(r"^workspace +([\d.,]+) MiB", run(capsys, "plan", *words, *flags).out, re.MULTILINE)
        assert found is not None and float(found[1].replace(",", "")) < 0.2 * grads


def test_the_chunk_follows_the_limit_and_training_keeps_it(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def limit() -> list[str]:
        """Room for more than one client beside what this process holds by now."""
        peak = re.search(r"peak +([\d.,]+) MiB", run(capsys, "plan", *words, "--chunk", "1").out)
        assert peak is not None
        return ["--memory-limit", f"{float(peak[1].replace(',', '')) + 60:.0f}MiB"]

    planned = re.search(r"with --chunk (\d+)", run(capsys, "plan", *words, *limit()).out)
    assert planned is not None and 2 <= int(planned[1]) < 40
    done = run(capsys, "train", *words, *limit())
    assert done.status == 0, done.err
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["machine"]
    assert 2 <= stored["chunk"] < 40
    refused = run(capsys, "train", *words, *limit(), "--chunk", "64", "--overwrite")
    assert refused.status == 2 and re.search(r"--chunk 64: needs .* GiB, --memory-limit allows .* fits", refused.err)
    assert len(refused.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--memory-limit 1MiB", "--memory-limit allows 1 MiB"),
        ("--memory-limit 0", "--memory-limit 0.0: must be a finite number of GiB above 0"),
        ("--memory-limit 1KiB", "--memory-limit allows 0.00098 MiB"),
        ("--memory-limit 8parsecs", "--memory-limit 8parsecs: give GiB as a number, or a size in one of B, KiB"),
        ("--memory-limit 100QiB", "--memory-limit 100QiB: give GiB"),
        ("--memory-limit=GiB", "--memory-limit GiB: give GiB"),
    ],
)
def test_limits_that_cannot_be_kept(
    flags: str, says: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(capsys, "train", *words, *flags.split())
    assert done.status == 2 and says in done.err and len(done.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "gib"), [("2", 2.0), ("2GiB", 2.0), ("512MiB", 0.5), ("1GB", 1e9 / 2**30), ("4096KiB", 2**-8)]
)
def test_units(word: str, gib: float) -> None:
    from fastlocal.commands.flags import parse

    assert parse(["--memory-limit", word]).run.machine.memory_limit == pytest.approx(gib)
