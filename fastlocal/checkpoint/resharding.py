"""The state of several ranks: resume.pt holds what they hold alike and names a part file per rank with the rest.

A state can be read by any number of ranks. As many as have written it find everything of their own as it was. Other
numbers share the clients anew: momenta and buffers, and which clients the round at hand has had, go to the rank that
has the client now; sums over clients are added up and given to the first rank. So the round ends with the same mean
and the same statistics to the rounding of these sums, and to the bit where they are integers (--reduce-order fixed).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distributed.ranks import split_contiguous
from ..params.client_stack import MOMENTUM
from ..schedule.cursor import TrainStats
from .state_file import DamagedState, State, read_state_file

OF_CLIENTS = "of clients "
"""Before the names of buffers that stay with each client; momenta have none."""
OF_RANDOM = ("torch random state", "cuda random state")
SUMS = ("sum ", "feedback ")
LOSSES = "losses "


def split(state: State) -> tuple[State, State]:
    """What all ranks hold alike, and what this one alone holds."""
    alone = {name: value for name, value in state.tensors.items() if _is_own(name)}
    alike = {name: value for name, value in state.tensors.items() if name not in alone}
    position = dict(state.metadata["position"])
    own = {"clients": state.metadata["clients"], "trained": position["trained"], "so_far": position.pop("so_far")}
    shared = {name: value for name, value in state.metadata.items() if name not in ("clients", "ranks")}
    return State(shared | {"position": position}, alike), State(own, alone)


def row_name(name: str) -> str:
    """What rows of a ClientStore are called in a saved state."""
    return name if name == MOMENTUM else OF_CLIENTS + name


def _is_rows(name: str) -> bool:
    return name == MOMENTUM or name.startswith(OF_CLIENTS)


def _is_own(name: str) -> bool:
    return _is_rows(name) or name in OF_RANDOM or name.startswith((*SUMS, LOSSES))


def entry(own: State, name: str, digest: str) -> dict[str, Any]:
    """What the shared state says of a part.

    name, digest: of its file
    """
    about = {key: own.metadata[key] for key in ("clients", "trained")}
    return {"name": name, "digest": digest, **about, "done": own.metadata["so_far"]["done"]}


def read_saved(path: Path, rank: int, size: int) -> State:
    """The state in `path` and its parts, for one rank of `size`.

    Raises DamagedState that names the file that is missing or not as it was written.
    """
    state = _read(path, None)
    if "parts" in state.metadata:
        entries = state.metadata["parts"]
        wanted = _needed([range(*one["clients"]) for one in entries], rank, size)
        parts = {at: _read(path.parent / entries[at]["name"], entries[at]["digest"]) for at in wanted}
        return assemble(state, parts, rank, size)
    if size == 1:
        return state
    shared, own = split(state)
    shared.metadata["parts"] = [entry(own, path.name, "")]
    return assemble(shared, {0: own}, rank, size)


def _read(path: Path, digest: str | None) -> State:
    try:
        return read_state_file(path, digest)
    except FileNotFoundError:
        raise DamagedState(f"{path} is missing") from None
    except DamagedState as error:
        raise DamagedState(f"{path} {error}") from None


def _needed(held: Sequence[range], rank: int, size: int) -> list[int]:
    """The parts that one rank of `size` reads, given the clients of each."""
    if _as_before(held, size):
        return [rank]
    mine = split_contiguous(held[-1].stop, rank, size)
    return [at for at, clients in enumerate(held) if rank == 0 or _common(clients, mine)] or [0]


def _as_before(held: Sequence[range], size: int) -> bool:
    return list(held) == [split_contiguous(held[-1].stop, rank, size) for rank in range(size)]


def _common(some: range, others: range) -> range:
    return range(max(some.start, others.start), min(some.stop, others.stop))


def assemble(shared: State, parts: Mapping[int, State], rank: int, size: int) -> State:
    """The state of one rank of `size`, rows and losses of its clients alone.

    shared: with its "parts"        parts: those that this rank needs, by their place among them
    The numbers get "begun": whether any client, of whichever rank, has had the round at hand.
    """
    entries = shared.metadata["parts"]
    held = [range(*one["clients"]) for one in entries]
    mine = split_contiguous(held[-1].stop, rank, size)
    numbers = {name: value for name, value in shared.metadata.items() if name != "parts"}
    numbers |= {"clients": [mine.start, mine.stop], "ranks": size, "begun": any(one["done"] for one in entries)}
    if _as_before(held, size):
        so_far, own = parts[rank].metadata["so_far"], parts[rank].tensors
    else:
        so_far, own = _dealt_anew(parts, mine, rank)
    position = shared.metadata["position"] | {"so_far": so_far}
    return State(numbers | {"position": position}, shared.tensors | own)


def _dealt_anew(parts: Mapping[int, State], mine: range, rank: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    states = [parts[at] for at in sorted(parts)]
    tensors = {name: states[0].tensors[name] for name in OF_RANDOM if name in states[0].tensors}
    for name in filter(_is_rows, states[0].tensors):
        tensors[name] = _rows([_of_clients(state, name, mine) for state in states])
    done: list[list[int]] = []
    for state in states:
        for at, (start, stop) in enumerate(state.metadata["so_far"]["done"]):
            both = _common(range(start, stop), mine)
            if both:
                losses = state.tensors.get(f"{LOSSES}{at}")
                if losses is not None:
                    tensors[f"{LOSSES}{len(done)}"] = losses[:, both.start - start : both.stop - start]
                done.append([both.start, both.stop])
    stats, bad = TrainStats(), []
    if rank == 0:
        for state in states:
            stats.add(TrainStats(**state.metadata["so_far"]["stats"]))
            bad += state.metadata["so_far"]["bad"]
        tensors |= _sums(state.tensors for state in states)
        begun = [state for state in states if state.metadata["so_far"]["done"]]
        if begun and not done:  # the sums are kept, though they are of other ranks' clients
            done.append([mine.start, mine.start])
            tensors |= {name: losses[:, :0] for name, losses in begun[0].tensors.items() if name == f"{LOSSES}0"}
    return {"done": done, "stats": vars(stats), "bad": bad}, tensors


def _of_clients(state: State, name: str, mine: range) -> Tensor:
    """The rows of this part's clients that are `local_clients`: a view, so that no more of the file is read."""
    start, stop = state.metadata["clients"]
    both = _common(range(start, stop), mine)
    return state.tensors[name][both.start - start : max(both.stop, both.start) - start]


def _rows(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


def _sums(several: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for tensors in several:
        for name, value in tensors.items():
            if name.startswith(SUMS):
                total[name] = total[name] + value if name in total else value
    return total
