"""Several ranks save together: the same saves, each within one round; the last one stands where one of them fails."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest

from fastlocal.checkpoint.distributed_saver import make_saver
from fastlocal.checkpoint.file_names import saved_paths
from fastlocal.checkpoint.resharding import read_saved
from fastlocal.checkpoint.restore import find_state
from fastlocal.checkpoint.state_file import State, read_state_file
from fastlocal.distributed.world import World
from tests.checkpoint.test_resharding import state_of
from tests.helpers.threads import on_every, worlds


def marked(world: World, comm_round: int, chunks: int) -> State:
    """A state in whose own part is in which round, and after how many chunks, the rank was."""
    state = state_of(world, comm_round=comm_round)
    state.metadata["position"]["so_far"]["bad"] = [[comm_round, chunks, ""]]
    return state


@pytest.mark.parametrize("every", [3, None])
def test_all_ranks_save_in_the_same_round(every: int | None, tmp_path: Path) -> None:
    """Rank 0 has the fewest chunks; by the clock it asks after one of them, or where the ranks meet."""

    def work(world: World) -> None:
        minutes = None if every else 0.02 / 60
        saver = make_saver(tmp_path, every=every, minutes=minutes, keep=100, sync=lambda: None, world=world)
        comm_round = asked = 0
        while comm_round < (12 if every else 5000) and asked < 20:
            comm_round += 1
            for chunk in range(1, 3 + world.rank):
                time.sleep(0.002)
                saver.after_chunk(partial(marked, world, comm_round, chunk))
            asked = max(world.all_gather_object(saver.requested_save(), "the end of a round"))
            saver.catch_up(asked, partial(marked, world, comm_round, 9))
            saver.after_round(comm_round, True, partial(marked, world, comm_round, 10))
        saver.finish(marked(world, comm_round, 11))
        saver.close()

    on_every(worlds(3), work)
    seen = []
    for path in reversed(saved_paths(tmp_path)):
        states = [read_saved(path, rank, 3) for rank in range(3)]
        marks = [state.metadata["position"]["so_far"]["bad"][0] for state in states]
        assert {mark[0] for mark in marks} == {states[0].metadata["position"]["comm_round"]}, "in different rounds"
        seen.append([chunks for _, chunks, _ in marks])
        rounds_of = marks[0][0]
        if every:
            assert rounds_of % every == 0 and set(seen[-1]) <= {10, 11}
    if every:
        assert len(seen) == 5
    else:
        assert len(seen) >= 20 and any(chunks[0] in (1, 2) for chunks in seen) and any(9 in chunks for chunks in seen)


def test_one_rank_cannot_write(tmp_path: Path) -> None:
    ranks = worlds(2)

    def work(world: World, comm_round: int) -> str:
        saver = make_saver(tmp_path, every=1, minutes=None, keep=2, sync=lambda: None, world=world)
        if comm_round == 2 and world.rank == 1:
            (tmp_path / "resume.3.1.part").mkdir()
        try:
            saver.after_round(1, False, lambda: state_of(world, comm_round=comm_round))
            saver.finish(state_of(world, comm_round=comm_round))
        except OSError as error:
            return str(error)
        finally:
            saver.close()
        return ""

    assert on_every(ranks, lambda world: work(world, 1)) == ["", ""]
    of_another, own = on_every(ranks, lambda world: work(world, 2))
    assert "Is a directory on rank 1" in of_another and "Is a directory" in own
    (tmp_path / "resume.3.1.part").rmdir()
    states = on_every(ranks, lambda world: find_state(tmp_path, pytest.fail, world))
    assert [state is not None and state.metadata["position"]["comm_round"] for state in states] == [1, 1]
    assert on_every(ranks, lambda world: work(world, 3)) == ["", ""]
    assert read_state_file(tmp_path / "resume.pt").metadata["position"]["comm_round"] == 3
