"""Partition files: .npz of the arrays, and .json of {client: [sample numbers]}."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from fastlocal.common.atomic_file import write_atomically
from fastlocal.common.errors import UsageError, one_line

from .arrays import Array, Int64, offsets_of

if TYPE_CHECKING:
    from .partition import Partition

SUFFIXES = (".npz", ".json")
MAX_JSON_BYTES = 256
"""Bytes of JSON for each sample of the data set above which a file is refused unread; 20 are usual."""

_UNREADABLE = (OSError, EOFError, ValueError, MemoryError, zipfile.BadZipFile, zlib.error, NotImplementedError)


class Stored(NamedTuple):
    """Fields of a stored Partition, in its order."""

    indices: Int64
    offsets: Int64
    client_ids: tuple[str, ...] | None
    meta: dict[str, Any]


def save(parts: Partition, path: Path) -> None:
    """Write a partition atomically."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: a partition is written to a .npz or .json file")
    if path.suffix == ".json":
        text = json.dumps({name: samples.tolist() for name, samples in _named_lists(parts)})
        write_atomically(path, lambda file: file.write(text.encode()))
        return
    arrays: dict[str, Array] = {"indices": parts.indices, "offsets": parts.offsets}
    if parts.client_ids is not None:
        arrays["client_ids"] = np.array(parts.client_ids, dtype=np.str_)
    arrays["meta"] = np.array(json.dumps(dict(parts.meta)))

    def write(file: BinaryIO) -> None:
        np.savez(file, **arrays)  # type: ignore[arg-type]

    write_atomically(path, write)


def load(path: Path, samples: int | None, flag: str) -> Stored:
    """Read the fields of a partition; see Partition.load."""
    if not path.is_file():
        problem = "is no file" if path.exists() else "does not exist"
        raise UsageError(f"{flag}: {problem}; a partition is a .npz or .json file, as fastlocal partition writes")
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{flag}: a partition is a file that ends in .npz or .json")
    try:
        return (_read_json if path.suffix == ".json" else _read_npz)(path, samples, flag)
    except UsageError:
        raise
    except RecursionError:
        raise UsageError(f"{flag}: is no JSON of {{client: [sample numbers]}}") from None
    except _UNREADABLE as error:
        raise UsageError(f"{flag}: cannot be read ({one_line(error, 120)}); write it again") from None


def _read_npz(path: Path, samples: int | None, flag: str) -> Stored:
    with zipfile.ZipFile(path) as file:
        names = {name.removesuffix(".npy") for name in file.namelist()}
        if not {"indices", "offsets"} <= names:
            held = ", ".join(sorted(names)[:8]) or "nothing"
            raise UsageError(f"{flag}: holds {held}; a partition has the arrays indices and offsets")
        found: dict[str, Array] = {}
        for name in ("indices", "offsets", "client_ids", "meta"):
            if name in names:
                limit = None if samples is None else samples + 1
                found[name] = _read_array(file, name, limit, flag)
    indices, offsets = (_integers(found[name], name, flag) for name in ("indices", "offsets"))
    client_ids, meta = found.get("client_ids"), found.get("meta")
    if client_ids is not None and (client_ids.dtype.kind != "U" or client_ids.ndim != 1):
        raise UsageError(f"{flag}: client_ids is {client_ids.dtype} of shape {client_ids.shape}; texts are expected")
    if meta is not None and (meta.dtype.kind != "U" or meta.ndim):
        raise UsageError(f"{flag}: meta is {meta.dtype} of shape {meta.shape}; one JSON text is expected")
    stored: Any = {} if meta is None else json.loads(str(meta))
    if not isinstance(stored, dict):
        raise UsageError(f"{flag}: meta is no JSON object")
    return Stored(indices, offsets, None if client_ids is None else tuple(client_ids.tolist()), stored)


def _read_array(file: zipfile.ZipFile, name: str, limit: int | None, flag: str) -> Array:
    """Read one array, but none of more than `limit` elements."""
    with file.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(member)
        count = int(np.prod(shape, dtype=np.float64)) if len(shape) else 1
        if limit is not None and count > limit:
            raise UsageError(f"{flag}: {name} has {count} elements; the data set has only {limit - 1} samples")
        # the archive's own directory says how much follows
        if count * dtype.itemsize > file.getinfo(f"{name}.npy").file_size:
            raise UsageError(f"{flag}: {name} is torn; write it again")
    return np.lib.format.read_array(io.BytesIO(file.read(f"{name}.npy")), allow_pickle=False)


def _integers(array: Array, name: str, flag: str) -> Array:
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise UsageError(f"{flag}: {name} is {array.dtype} of shape {array.shape}; integers [n] are expected")
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise UsageError(f"{flag}: {name} holds {array.max()}, which no data set has")
    return array.astype(np.int64)


def _read_json(path: Path, samples: int | None, flag: str) -> Stored:
    size = path.stat().st_size
    if samples is not None and size > MAX_JSON_BYTES * (samples + 4096):
        raise UsageError(f"{flag}: has {size} bytes, too many for a partition of {samples} samples")
    expected = f"{flag}: JSON of {{client: [sample numbers]}} is expected"
    lists = json.loads(path.read_bytes(), object_pairs_hook=_Pairs)
    if not isinstance(lists, _Pairs):
        raise UsageError(expected)
    names, values = tuple(name for name, _ in lists), [value for _, value in lists]
    for name, value in lists:
        if type(value) is not list or not set(map(type, value)) <= {int}:
            raise UsageError(f"{expected}; that of client {name!r} is none")
    flat = [number for value in values for number in value]
    if flat and not -(2**63) <= min(flat) <= max(flat) < 2**63:
        raise UsageError(f"{flag}: sample {max(flat, key=abs)} does not exist")
    numbered = names == tuple(map(str, range(len(names))))
    sizes = np.array([len(value) for value in values], dtype=np.int64)
    return Stored(np.array(flat, dtype=np.int64), offsets_of(sizes), None if numbered else names, {})


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON as pairs, so that a key given twice is seen."""


def _named_lists(parts: Partition) -> list[tuple[str, Array]]:
    names = parts.client_ids or tuple(map(str, range(parts.clients)))
    return list(zip(names, np.split(parts.indices, parts.offsets[1:-1]), strict=True))
