"""The file that holds a run's state: numbers and tensors behind a checksum, read without running code.

    magic, length of the index (8 bytes), index (JSON), tensors (each at a multiple of 64 bytes), SHA-256 of all before

The index names every tensor's dtype, shape and offset, so that a part of one can be read without the rest.
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

MAGIC = b"fastlocal state 1\n"
DIGEST_BYTES = 32
ALIGNMENT = 64
BLOCK_BYTES = 16 * 2**20


class DamagedState(Exception):
    """A file is not, or no longer, a whole state; the text says what is wrong with it."""


@dataclass(frozen=True)
class State:
    """Where a run stands.

    numbers: what JSON can hold, floats to the bit        tensors: dense, on the CPU
    """

    numbers: dict[str, Any]
    tensors: dict[str, Tensor]


def state_bytes(state: State) -> Iterator[memoryview]:
    """The bytes of the file, at most 16 MiB at a time."""
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
        at += _padded(tensor.numel() * tensor.element_size())
    text = json.dumps({"numbers": state.numbers, "tensors": index}).encode()
    head = MAGIC + len(text).to_bytes(8, "little") + text
    yield memoryview(head + bytes(_padded(len(head)) - len(head)))
    for tensor in state.tensors.values():
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        yield flat.numpy().data
        yield memoryview(bytes(_padded(len(flat)) - len(flat)))


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def read_state_file(path: Path) -> State:
    """The state in `path`; its tensors are views of the file, which is read as they are.

    Raises DamagedState where one bit is not as it was written, OSError where the file cannot be read.
    """
    with path.open("rb") as file:
        try:
            held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except ValueError:
            raise DamagedState("is empty") from None
    with memoryview(held) as view:
        body = len(view) - DIGEST_BYTES
        if body < 0 or hashlib.sha256(view[:body]).digest() != view[body:]:
            raise DamagedState("is torn or damaged: its checksum does not fit")
    if not held[: len(MAGIC)] == MAGIC:
        raise DamagedState("is of another version")
    begin = len(MAGIC) + 8
    end = begin + int.from_bytes(held[len(MAGIC) : begin], "little")
    index = json.loads(held[begin:end])
    tensors = {}
    for name, dtype, shape, at in index["tensors"]:
        count, kind = math.prod(shape), getattr(torch, dtype)
        flat = torch.frombuffer(held, dtype=kind, count=count, offset=_padded(end) + at) if count else torch.empty(0)
        tensors[name] = flat.to(kind).reshape(shape)
    return State(index["numbers"], tensors)
