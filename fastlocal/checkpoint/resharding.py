"""States of several ranks: resume.pt holds the common part and lists one part file per rank.

Any number of ranks can read a state. The same number of ranks restores each rank's own part. Another number splits the
clients anew: momenta, buffers and the progress of the current round go to the client's new rank, and sums over clients
are added up on rank 0. So the round ends with the same mean and statistics, up to the rounding of these sums; integer
sums (--reduce-order fixed) are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distributed.ranks import split_contiguous
from ..params.client_stack import MOMENTUM
from ..schedule.cursor import TrainStats, rows_from_json, rows_to_json
from .state_file import DamagedState, State, read_state_file

CLIENT_PREFIX = "of clients "
"""Prefix of the buffers that stay with each client; momenta have none."""
RNG_NAMES = ("torch random state", "cuda random state")
SUM_PREFIXES = ("sum ", "feedback ")
LOSS_PREFIX = "losses "


def split(state: State) -> tuple[State, State]:
    """Split a state into the part common to all ranks and the part of this rank."""
    alone = {name: value for name, value in state.tensors.items() if _is_own(name)}
    alike = {name: value for name, value in state.tensors.items() if name not in alone}
    position = dict(state.metadata["position"])
    own = {"clients": state.metadata["clients"], "trained": position["trained"], "so_far": position.pop("so_far")}
    if "client_store" in state.metadata:
        own["epoch"] = state.metadata["client_store"]["epoch"]
    shared = {name: value for name, value in state.metadata.items() if name not in ("clients", "ranks")}
    return State(shared | {"position": position}, alike), State(own, alone)


def row_name(name: str) -> str:
    """Return the name of a ClientStore's rows in a saved state."""
    return name if name == MOMENTUM else CLIENT_PREFIX + name


def client_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the rows of a ClientStore by their own names, from those in a saved state."""
    return {name.removeprefix(CLIENT_PREFIX): rows for name, rows in tensors.items() if _is_rows(name)}


def _is_rows(name: str) -> bool:
    return name == MOMENTUM or name.startswith(CLIENT_PREFIX)


def _is_own(name: str) -> bool:
    return _is_rows(name) or name in RNG_NAMES or name.startswith((*SUM_PREFIXES, LOSS_PREFIX))


def part_entry(own: State, name: str, digest: str) -> dict[str, Any]:
    """Return the entry of a part in the common state.

    Args:
        own: The part.
        name: Name of its file.
        digest: Checksum of its file.
    """
    about: dict[str, Any] = {key: own.metadata[key] for key in ("clients", "trained", "epoch") if key in own.metadata}
    return {"name": name, "digest": digest, **about, "done": own.metadata["so_far"]["done"]}


def read_saved(path: Path, rank: int, size: int) -> State:
    """Read the state in `path` and its parts, for one rank of `size`.

    Raises:
        DamagedState: A file is missing or damaged; the message names it.
    """
    state = _read(path, None)
    if "parts" in state.metadata:
        entries = state.metadata["parts"]
        indices = _needed_parts([range(*part["clients"]) for part in entries], rank, size)
        parts = {at: _read(path.parent / entries[at]["name"], entries[at]["digest"]) for at in indices}
        return assemble(state, parts, rank, size)
    if size == 1:
        return state
    shared, own = split(state)
    shared.metadata["parts"] = [part_entry(own, path.name, "")]
    return assemble(shared, {0: own}, rank, size)


def _read(path: Path, digest: str | None) -> State:
    try:
        return read_state_file(path, digest)
    except FileNotFoundError:
        raise DamagedState(f"{path} is missing") from None
    except DamagedState as error:
        raise DamagedState(f"{path} {error}") from None


def _needed_parts(part_clients: Sequence[range], rank: int, size: int) -> list[int]:
    """Return the indices of the parts that one rank of `size` reads."""
    if _same_split(part_clients, size):
        return [rank]
    mine = split_contiguous(part_clients[-1].stop, rank, size)
    return [at for at, clients in enumerate(part_clients) if rank == 0 or _common(clients, mine)] or [0]


def _same_split(part_clients: Sequence[range], size: int) -> bool:
    return list(part_clients) == [split_contiguous(part_clients[-1].stop, rank, size) for rank in range(size)]


def _common(some: range, others: range) -> range:
    return range(max(some.start, others.start), min(some.stop, others.stop))


def assemble(shared: State, parts: Mapping[int, State], rank: int, size: int) -> State:
    """Assemble the state of one rank of `size`, with the rows and losses of its clients alone.

    Args:
        shared: The common state, with its "parts".
        parts: The needed parts, by index.
        rank: The rank.
        size: Number of ranks.

    Returns:
        The state; its metadata has "begun": whether a client of any rank has trained in the current round.
    """
    entries = shared.metadata["parts"]
    part_clients = [range(*part["clients"]) for part in entries]
    mine = split_contiguous(part_clients[-1].stop, rank, size)
    metadata = {name: value for name, value in shared.metadata.items() if name != "parts"}
    metadata |= {"clients": [mine.start, mine.stop], "ranks": size, "begun": any(part["done"] for part in entries)}
    if _same_split(part_clients, size):
        so_far, own = parts[rank].metadata["so_far"], parts[rank].tensors
    else:
        so_far, own = _reshard(parts, mine, rank)
    position = shared.metadata["position"] | {"so_far": so_far}
    return State(metadata | {"position": position}, shared.tensors | own)


def _reshard(parts: Mapping[int, State], mine: range, rank: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    states = [parts[at] for at in sorted(parts)]
    tensors = {name: states[0].tensors[name] for name in RNG_NAMES if name in states[0].tensors}
    for name in filter(_is_rows, states[0].tensors):
        tensors[name] = _concatenate([_client_rows(state, name, mine) for state in states])
    done: list[Any] = []
    for state in states:
        for at, stored in enumerate(state.metadata["so_far"]["done"]):
            columns = _columns(state.metadata["so_far"], at, mine)
            if columns:
                losses = state.tensors.get(f"{LOSS_PREFIX}{at}")
                if losses is not None:
                    tensors[f"{LOSS_PREFIX}{len(done)}"] = losses[:, columns]
                rows = rows_from_json(stored)
                if isinstance(rows, range):
                    done.append(rows_to_json(rows[columns[0] : columns[-1] + 1]))
                else:
                    done.append(rows_to_json([rows[column] for column in columns]))
    stats, bad, own_results = TrainStats(), [], []
    if rank == 0:
        for state in states:
            stats.add(TrainStats(**state.metadata["so_far"]["stats"]))
            bad += state.metadata["so_far"]["bad"]
            own_results += state.metadata["so_far"].get("own_results", [])
        tensors |= _sums(state.tensors for state in states)
        partial = [state for state in states if state.metadata["so_far"]["done"]]
        if partial and not done:  # keep the sums, although they are of other ranks' clients
            done.append([mine.start, mine.start])
            tensors |= {name: losses[:, :0] for name, losses in partial[0].tensors.items() if name == f"{LOSS_PREFIX}0"}
    return {"done": done, "stats": vars(stats), "bad": bad, "own_results": own_results}, tensors


def _columns(so_far: Mapping[str, Any], at: int, mine: range) -> list[int]:
    """Return the places, in a finished chunk, of the rows whose state is in the rows `mine` of the new rank's store.

    Those of a range follow each other.

    Args:
        so_far: Progress of the round.
        at: Index of the chunk.
        mine: Rows of the store: clients if these keep their state, else rows of the cohort.
    """
    places = so_far["clients"][at] if "clients" in so_far else rows_from_json(so_far["done"][at])
    return [column for column, place in enumerate(places) if place in mine]


def _client_rows(state: State, name: str, mine: range) -> Tensor:
    """Return a part's rows of the clients in `mine`, as a view, so that only these are read from the file."""
    start, stop = state.metadata["clients"]
    both = _common(range(start, stop), mine)
    return state.tensors[name][both.start - start : max(both.stop, both.start) - start]


def _concatenate(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces))


def _sums(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for tensors in parts:
        for name, value in tensors.items():
            if name.startswith(SUM_PREFIXES):
                total[name] = total[name] + value if name in total else value
    return total
