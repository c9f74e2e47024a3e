"""LEAF's JSON files: users, num_samples and user_data (Caldas et al. 2018)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fastlocal.common.errors import UsageError, one_line

from .samples import Array, Samples, to_inputs


def read_users(origin: str, place: Path) -> Samples:
    """Read a .json file, or all of a folder; users are sorted by name.

    Raises:
        UsageError: A file is torn, a user is without data or in two files, or inputs are no numbers.
    """
    paths = sorted(place.glob("*.json")) if place.is_dir() else [place]
    if not paths:
        raise UsageError(f"{origin}: has no .json files")
    found: dict[str, tuple[Array, Array]] = {}
    for path in paths:
        about = f"{origin}/{path.name}" if place.is_dir() else origin
        for user, samples in _read(about, path).items():
            if user in found:
                raise UsageError(f"{about}: user {user!r} is in two files")
            found[user] = samples
    users = sorted(found)
    if not users:
        raise UsageError(f"{origin}: has no users")
    inputs, labels = ([found[user][part] for user in users] for part in (0, 1))
    if len({array.shape[1:] for array in inputs}) > 1:
        raise UsageError(f"{origin}: inputs of users have different shapes")
    owners = np.repeat(np.array(users), [len(own) for own in labels])
    return Samples(origin, to_inputs(origin, np.concatenate(inputs), flat_images=True), np.concatenate(labels), owners)


def _read(origin: str, path: Path) -> dict[str, tuple[Array, Array]]:
    """Return inputs [n, ...] and labels [n] of each user of a file."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{origin}: is no JSON ({one_line(error, 120)})") from None
    if not isinstance(content, dict) or not isinstance(content.get("user_data"), dict):
        raise UsageError(f"{origin}: is no file of LEAF; users, num_samples and user_data are expected")
    users, counts = content.get("users", list(content["user_data"])), content.get("num_samples")
    if not isinstance(users, list) or not (counts is None or (isinstance(counts, list) and len(counts) == len(users))):
        raise UsageError(f"{origin}: users and num_samples are no lists of one length")
    return {
        str(user): _samples(
            origin, str(user), content["user_data"].get(user), None if counts is None else counts[place]
        )
        for place, user in enumerate(users)
    }


def _samples(origin: str, user: str, data: Any, count: Any) -> tuple[Array, Array]:
    whose = f"{origin}: user {user!r}"
    if not isinstance(data, dict) or not isinstance(data.get("x"), list) or not isinstance(data.get("y"), list):
        raise UsageError(f"{whose} has no data; x and y are expected in user_data")
    if not data["y"] or len(data["x"]) != len(data["y"]) or (count is not None and count != len(data["y"])):
        said = "" if count is None else f", and num_samples says {count}"
        raise UsageError(f"{whose} has {len(data['x'])} x and {len(data['y'])} y{said}; leave users without data out")
    try:
        inputs, labels = np.array(data["x"]), np.array(data["y"])
    except (ValueError, OverflowError):
        raise UsageError(f"{whose}: its samples have different shapes") from None
    if inputs.dtype.kind not in "iuf" or labels.dtype.kind not in "iuU" or labels.ndim != 1:
        raise UsageError(f"{whose}: x is {inputs.dtype}, y {labels.dtype}; x of numbers and y of labels are expected")
    return inputs if inputs.ndim > 1 else inputs[:, None], labels
