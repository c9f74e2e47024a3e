"""File of a run's state: metadata and tensors with a checksum, read without running code.

    magic, length of the index (8 bytes), index (JSON), tensors (each at a multiple of 64 bytes), SHA-256 of all before

The index holds every tensor's dtype, shape and offset, so that a slice can be read without the rest.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAGIC_PREFIX = b"fastlocal state "
MAGIC = MAGIC_PREFIX + b"2\n"
DIGEST_BYTES = 32
ALIGNMENT = 64
BLOCK_BYTES = 16 * 2**20


class DamagedState(Exception):
    """A file is not an intact state; the message is the reason."""


@dataclass(frozen=True)
class State:
    """State of a run.

    Attributes:
        metadata: JSON values; floats are exact.
        tensors: Dense, on the CPU.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def state_bytes(state: State) -> Iterator[memoryview]:
    """Yield the bytes of the file, at most 16 MiB at a time."""
    digest = hashlib.sha256()
    for whole in _parts(state):
        for begin in range(0, len(whole), BLOCK_BYTES):
            block = whole[begin : begin + BLOCK_BYTES]
            digest.update(block)
            yield block
    yield memoryview(digest.digest())


def _parts(state: State) -> Iterator[memoryview]:
    index, at = [], 0
    for name, tensor in state.tensors.items():
        index.append([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), at])
        at += _align(tensor.numel() * tensor.element_size())
    text = json.dumps({"numbers": state.metadata, "tensors": index}).encode()
    head = MAGIC + len(text).to_bytes(8, "little") + text
    yield memoryview(head + bytes(_align(len(head)) - len(head)))
    for tensor in state.tensors.values():
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        yield flat.numpy().data
        yield memoryview(bytes(_align(len(flat)) - len(flat)))


def _align(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def read_state_file(path: Path, digest: str | None = None) -> State:
    """Read a state; its tensors are views of the mapped file, read on access.

    Args:
        path: The file.
        digest: Its expected `stored_digest`, or None if unknown.

    Raises:
        DamagedState: The file differs from what was written.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except ValueError:
            raise DamagedState("is empty") from None
    with memoryview(mapped) as view:
        body = len(view) - DIGEST_BYTES
        if body < 0 or hashlib.sha256(view[:body]).digest() != view[body:]:
            raise DamagedState("is torn or damaged: its checksum does not fit")
        if digest is not None and view[body:] != bytes.fromhex(digest):
            raise DamagedState("is of another save")
    if not mapped[: len(MAGIC)] == MAGIC:
        raise DamagedState("is of another version")
    begin, end = _index_place(mapped[: len(MAGIC) + 8])
    index = json.loads(mapped[begin:end])
    tensors = {}
    for name, dtype, shape, at in index["tensors"]:
        count, kind = math.prod(shape), getattr(torch, dtype)
        flat = torch.frombuffer(mapped, dtype=kind, count=count, offset=_align(end) + at) if count else torch.empty(0)
        tensors[name] = flat.to(kind).reshape(shape)
    return State(index["numbers"], tensors)


def _index_place(head: bytes) -> tuple[int, int]:
    begin = len(MAGIC) + 8
    return begin, begin + int.from_bytes(head[len(MAGIC) : begin], "little")


def stored_digest(path: Path) -> str:
    """Return the checksum at the end of the file, which identifies it."""
    with path.open("rb") as file:
        file.seek(-DIGEST_BYTES, 2)
        return file.read().hex()


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a state, without its tensors and unchecked; raises DamagedState if there is none."""
    with path.open("rb") as file:
        begin, end = _index_place(file.read(len(MAGIC) + 8))
        try:
            metadata = json.loads(file.read(min(end - begin, path.stat().st_size)))["numbers"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedState("holds no index") from error
    if not isinstance(metadata, dict):
        raise DamagedState("holds no numbers")
    return metadata
