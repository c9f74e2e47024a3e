"""Partition files: what is written is read again, and what is torn, foreign, huge or of other data is refused."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastlocal import partition
from fastlocal.common.errors import UsageError
from fastlocal.data.partition.build import build
from tests.helpers.command_line import tree

LABELS = np.arange(40) % 4
NAMED = partition.natural(np.array([f"writer {sample % 7}" for sample in range(40)]), LABELS)
NUMBERED = partition.shards(LABELS, clients=5)


@pytest.mark.parametrize("suffix", [".npz", ".json"])
@pytest.mark.parametrize("parts", [NAMED, NUMBERED], ids=["named", "numbered"])
def test_what_is_saved_is_loaded(parts: partition.Partition, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"parts{suffix}"
    parts.save(path)
    parts.save(path)
    assert tree(tmp_path) == {path.name}
    found = partition.load(path)
    assert np.array_equal(found.indices, parts.indices) and np.array_equal(found.offsets, parts.offsets)
    assert found.client_ids == parts.client_ids
    assert found.meta == (parts.meta if suffix == ".npz" else {})
    assert built(path).clients == parts.clients


def test_json_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "parts.json"
    path.write_text('{"ann": [3, 1], "bob": [0]}')
    found = partition.load(path)
    assert (
        found.client_ids == ("ann", "bob")
        and found.indices.tolist() == [3, 1, 0]
        and found.offsets.tolist() == [0, 2, 3]
    )


def built(path: Path, **changes: Any) -> partition.Partition:
    about = {"samples": 40, "labels": LABELS, "clients": None, "seed": 0} | changes
    return build(str(path), **about)


def json_of(content: Any) -> Callable[[Path], None]:
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda path: path.with_suffix(".json").write_text(text) and None


def npz_of(**arrays: Any) -> Callable[[Path], None]:
    whole = {"indices": NUMBERED.indices, "offsets": NUMBERED.offsets}
    return lambda path: np.savez(path, **{name: held for name, held in (whole | arrays).items() if held is not None})


def torn(path: Path) -> None:
    NUMBERED.save(path)
    os.truncate(path, path.stat().st_size // 2)


def huge(path: Path) -> None:
    """An archive that says of 2^40 indices, and holds none of them."""
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776,), }"
    text = header + b" " * (118 - len(header) - 1) + b"\n"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("indices.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
        file.writestr("offsets.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)


def of_other_labels(path: Path) -> None:
    partition.shards(LABELS[::-1].copy(), clients=5).save(path)


def of_more_samples(path: Path) -> None:
    partition.Partition.from_lists([[0], [1]], None, {"samples": 60000}).save(path)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is no file"),
        (lambda path: path.write_bytes(b"PK nothing"), "cannot be read"),
        (torn, "cannot be read"),
        (huge, "indices has 1099511627776 elements; the data set has only 40 samples"),
        (npz_of(offsets=None), "holds indices; a partition has the arrays indices and offsets"),
        (npz_of(indices=np.array([[1]])), "indices is int64 of shape (1, 1)"),
        (npz_of(indices=np.array([0.5])), "indices is float64"),
        (npz_of(indices=np.full(40, 2**64 - 1, dtype=np.uint64)), "indices holds 18446744073709551615"),
        (npz_of(indices=np.array([{}], dtype=object)), "cannot be read"),
        (npz_of(offsets=np.array([0, 9, 3, 40])), "its offsets do not ascend from 0 to its 40 indices"),
        (npz_of(client_ids=np.array(["a"])), "has 1 names for 5 clients"),
        (npz_of(client_ids=np.array(["a", "b", "a", "c", "d"])), "two clients have one name"),
        (npz_of(meta=np.array("[1]")), "meta is no JSON object"),
        (of_other_labels, "was made of another data set"),
        (of_more_samples, "was made of 60000 training samples, and here are 40"),
        (json_of('{"0": [1, 2'), "cannot be read"),
        (json_of([1, 2]), "JSON of {client: [sample numbers]} is expected"),
        (json_of({"a": 3}), "is expected; that of client 'a' is none"),
        (json_of({"a": [1.5]}), "is expected; that of client 'a' is none"),
        (json_of({"a": [True]}), "is expected; that of client 'a' is none"),
        (json_of('{"a": [1], "a": [2]}'), "two clients have one name"),
        (json_of({"a": [10**30]}), "does not exist"),
        (json_of({"a": [1, 40]}), "client 'a' has sample 40, which does not exist; the training samples are 0 to 39"),
        (json_of({"a": [-1]}), "client 'a' has sample -1, which does not exist"),
        (
            json_of({"a": [1, 2], "b": [3, 1]}),
            "sample 1 is owned by clients 'a' and 'b'; a sample has one owner at most",
        ),
        (json_of({"a": [1, 1]}), "sample 1 is owned twice by client 'a'"),
        (json_of({"a": [1], "b": [], "c": [], "d": [2]}), "client 'b' and 1 more of 4 has no samples"),
        (json_of({}), "has no clients"),
        (json_of("[" * 100000), "is no JSON"),
        (json_of(json.dumps({"a": [1]}) + " " * 2**21), "too many for a partition of 40 samples"),
    ],
)
def test_bad_files_are_refused_in_one_line(write: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    write(tmp_path / "parts.npz")
    path = next(iter(tmp_path.iterdir()), tmp_path / "parts.npz")
    with pytest.raises(UsageError) as refused:
        built(path)
    assert str(refused.value).startswith(f"--partition {path}: ") and says in str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_least_sizes_and_numbers_of_clients(tmp_path: Path) -> None:
    path = tmp_path / "parts.npz"
    NAMED.save(path)
    with pytest.raises(UsageError, match="client 'writer 5' has 5 samples, fewer than --min-client-size 6"):
        built(path, min_client_size=6)
    with pytest.raises(UsageError, match="has 7 clients, and 9 were asked for"):
        built(path, clients=9)
    with pytest.raises(UsageError, match="--alpha 0.5: means nothing with --partition"):
        built(path, alpha=0.5)
    about: dict[str, Any] = {"samples": 40, "labels": LABELS, "clients": None, "seed": 0, "natural": NAMED}
    assert build("natural", **about) is NAMED
    kept = build("natural", min_client_size=6, **about)
    assert kept.client_ids == tuple(f"writer {number}" for number in range(5)) and set(kept.sizes.tolist()) == {6}


@pytest.mark.parametrize("where", ["no folder", "parts.csv"])
def test_nothing_is_left_where_saving_fails(where: str, tmp_path: Path) -> None:
    path = tmp_path / "none" / "parts.npz" if where == "no folder" else tmp_path / where
    with pytest.raises((OSError, UsageError)):
        NUMBERED.save(path)
    assert tree(tmp_path) == set()
