"""The state of several ranks: written by some number of them, read by another."""

from __future__ import annotations

import dataclasses
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from fastlocal.checkpoint.distributed_saver import make_saver
from fastlocal.checkpoint.file_names import remove_unreferenced_parts
from fastlocal.checkpoint.restore import find_state
from fastlocal.checkpoint.state_file import State
from fastlocal.common.errors import UsageError
from fastlocal.distributed.ranks import split_contiguous
from fastlocal.distributed.world import World
from fastlocal.schedule.cursor import TrainStats
from tests.helpers.threads import on_every, worlds

CLIENTS, STEPS, N_PARAMS = 7, 3, 11
MOMENTA = torch.randn(CLIENTS, N_PARAMS, generator=torch.Generator().manual_seed(0))
LOSSES = torch.randn(STEPS, CLIENTS, generator=torch.Generator().manual_seed(1))
HAD = {0, 1, 4, 5, 6}
"""Clients that have had the round at hand."""


def state_of(world: World, had: set[int] = HAD, clients: int = CLIENTS, comm_round: int = 5) -> State:
    """What one rank holds in the middle of a round, its chunks being two clients."""
    mine = split_contiguous(clients, world.rank, world.size)
    chunks = [mine[at : at + 2] for at in range(0, len(mine), 2)]
    done = [[chunk.start, chunk.stop] for chunk in chunks if set(chunk) <= had]
    passed = [client for start, stop in done for client in range(start, stop)]
    stats = TrainStats(float(sum(passed)), [float(len(passed))], len(passed)) if passed else TrainStats()
    so_far = {"done": done, "stats": dataclasses.asdict(stats), "bad": [[9, client, "loss"] for client in passed]}
    numbers = {
        "config": {"seed": 3},
        "position": {"comm_round": comm_round, "trained": 2 * comm_round, "so_far": so_far},
        "clients": [mine.start, mine.stop],
        "ranks": world.size,
        "ended": None,
    }
    tensors = {
        "row": torch.arange(N_PARAMS),
        "torch random state": torch.arange(5) + world.rank + 10 * comm_round,
        "momentum": MOMENTA[mine.start : mine.stop].clone(),
        "feedback wire": torch.full((N_PARAMS,), 2**world.rank),
    }
    if done:
        tensors["sum total"] = torch.full((N_PARAMS,), sum(3**client for client in passed))
        tensors |= {f"losses {at}": LOSSES[:, start:stop].clone() for at, (start, stop) in enumerate(done)}
    return State(numbers, tensors)


def save(directory: Path, size: int, **values: Any) -> None:
    def work(world: World) -> None:
        saver = make_saver(directory, every=None, minutes=None, keep=2, sync=lambda: None, world=world)
        saver.finish(state_of(world, **values))
        saver.close()

    on_every(worlds(size), work)


def read(directory: Path, size: int, message: Any = pytest.fail) -> list[State]:
    def work(world: World) -> State:
        state = find_state(directory, message if world.rank == 0 else lambda text: None, world)
        assert state is not None
        return state

    return on_every(worlds(size), work)


def same(one: State, other: State) -> bool:
    named = {name: value for name, value in one.metadata.items() if name != "begun"}
    return named == other.metadata and all(
        one.tensors[name].equal(other.tensors[name]) for name in {*one.tensors, *other.tensors}
    )


@pytest.mark.parametrize("before", [1, 2, 3, 9])
@pytest.mark.parametrize("after", [1, 2, 3, 9])
def test_any_number_of_ranks_reads_it(before: int, after: int, tmp_path: Path) -> None:
    """Nine ranks are more than there are clients."""
    save(tmp_path, before)
    written, states = [state_of(world) for world in worlds(before)], read(tmp_path, after)
    if before == after:
        assert all(same(*pair) for pair in zip(states, written, strict=True))
    rows = torch.cat([state.tensors["momentum"] for state in states])
    assert rows.equal(MOMENTA)
    had: dict[int, torch.Tensor] = {}
    for rank, state in enumerate(states):
        mine = split_contiguous(CLIENTS, rank, after)
        assert state.metadata["clients"] == [mine.start, mine.stop] and state.metadata["ranks"] == after
        assert state.tensors["row"].equal(torch.arange(N_PARAMS)) and "torch random state" in state.tensors
        for at, (start, stop) in enumerate(state.metadata["position"]["so_far"]["done"]):
            assert mine.start <= start < stop <= mine.stop and not had.keys() & set(range(start, stop))
            had |= {client: state.tensors[f"losses {at}"][:, client - start] for client in range(start, stop)}
    done = [pair for state in written for pair in state.metadata["position"]["so_far"]["done"]]
    passed = {client for pair in done for client in range(*pair)}
    assert had.keys() == passed and all(losses.equal(LOSSES[:, client]) for client, losses in had.items())
    for name, wanted in (("sum total", sum(3**client for client in passed)), ("feedback wire", 2**before - 1)):
        total = sum(state.tensors[name] for state in states if name in state.tensors)
        assert torch.equal(torch.as_tensor(total), torch.full((N_PARAMS,), wanted))
    sums = TrainStats()
    for state in states:
        sums.add(TrainStats(**state.metadata["position"]["so_far"]["stats"]))
    assert (sums.loss, sums.correct, sums.samples) == (sum(passed), [len(passed)], len(passed))
    bad = [one for state in states for one in state.metadata["position"]["so_far"]["bad"]]
    assert {client for _, client, _ in bad} == passed and len(bad) == len(passed)
    assert all(state.metadata.get("begun", True) for state in states)


def test_a_damaged_or_missing_part(tmp_path: Path) -> None:
    """Every rank takes the state before, whoever finds the damage; where there is none, one line says so."""
    draw = random.Random(0)
    save(tmp_path, 2, comm_round=5)
    save(tmp_path, 2, comm_round=6)
    parts = sorted(path.name for path in tmp_path.glob("*.part"))
    assert parts == ["resume.1.0.part", "resume.1.1.part", "resume.2.0.part", "resume.2.1.part"]
    newest = {name: (tmp_path / name).read_bytes() for name in ("resume.pt", *parts[2:])}
    before = (tmp_path / "resume.1.pt").read_bytes()

    def damaged(name: str, change: bytes | None) -> None:
        (tmp_path / name).unlink() if change is None else (tmp_path / name).write_bytes(change)
        for after in (2, 3):
            said: list[str] = []
            states = read(tmp_path, after, said.append)
            assert [state.metadata["position"]["comm_round"] for state in states] == [5] * after
            assert len(said) == 1 and name in said[0] and "\n" not in said[0] and "resume.1.pt" in said[0]
            assert (tmp_path / "resume.pt").read_bytes() == before
            (tmp_path / "resume.1.pt").write_bytes(before)
            (tmp_path / "resume.pt").write_bytes(newest["resume.pt"] if name != "resume.pt" else change or b"")
        for file, content in newest.items():
            (tmp_path / file).write_bytes(content)

    for name, whole in newest.items():
        bit = draw.randrange(8 * len(whole))
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        for change in (bytes(flipped), whole[: draw.randrange(len(whole))], None if name != "resume.pt" else b""):
            damaged(name, change)
    damaged(parts[3], (tmp_path / parts[1]).read_bytes())  # whole, but of another save
    assert {state.metadata["position"]["comm_round"] for state in read(tmp_path, 2)} == {6}
    for name in (parts[0], parts[3]):
        os.truncate(tmp_path / name, 100)
    with pytest.raises(UsageError, match=r"resume\.2\.1\.part is torn.*resume\.1\.0\.part is torn.*--overwrite 1"):
        read(tmp_path, 2)


def test_folders_that_are_not_shared(tmp_path: Path) -> None:
    for name, comm_round in (("one", 5), ("other", 6)):
        (tmp_path / name).mkdir()
        save(tmp_path / name, 2, comm_round=comm_round)

    def work(world: World) -> None:
        find_state(tmp_path / ("one" if world.rank == 0 else "other"), pytest.fail, world)

    with pytest.raises(UsageError, match=r"another one for rank 1"):
        on_every(worlds(2), work)


def test_parts_go_with_the_states_that_name_them(tmp_path: Path) -> None:
    for size, left in ((2, "1.0 1.1"), (3, "1.0 1.1 2.0 2.1 2.2"), (1, "2.0 2.1 2.2"), (1, "")):
        save(tmp_path, size)
        assert {path.name for path in tmp_path.glob("*.part")} == {f"resume.{name}.part" for name in left.split()}
    save(tmp_path, 2)
    (tmp_path / "resume.7.0.part").write_bytes(b"of a process that was killed")
    save(tmp_path, 2)
    assert {path.name for path in tmp_path.glob("*.part")} == {
        f"resume.{name}.part" for name in ("1.0", "1.1", "8.0", "8.1")
    }
    (tmp_path / "resume.9.1.part").write_bytes(b"")
    remove_unreferenced_parts(tmp_path)
    assert not (tmp_path / "resume.9.1.part").exists() and len(list(tmp_path.glob("*.part"))) == 4
