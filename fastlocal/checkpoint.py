"""Checkpoints: atomic saves, loads that cannot run code, and messages that say what does not fit."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UsageError


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(file)` on a temporary file beside `path`, flush it to disk, and rename it to `path`."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_model(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a plain state_dict on the CPU that loads into the plain module."""
    plain = {name: value.detach().cpu().clone() for name, value in state.items()}
    write_atomically(path, lambda file: torch.save(plain, file))


def read_state(path: Path, flag: str) -> dict[str, Tensor]:
    """The state_dict in `path`.

    flag: what the user set, for the message
    Raises UsageError where the file is missing, torn or holds anything but named tensors.
    """
    if not path.is_file():
        raise UsageError(f"{flag} {path}: no such file; give a state_dict written by torch.save")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise UsageError(f"{flag} {path}: not a readable checkpoint of tensors alone ({reason})") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{flag} {path}: holds {type(state).__name__}, not a state_dict of named tensors")
    return {str(name): value for name, value in state.items()}


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path, flag: str) -> None:
    """Load `state`, or raise UsageError that names the first key that is missing, unknown or of another shape."""
    wanted = module.state_dict()
    for name, value in wanted.items():
        if name not in state:
            raise UsageError(f"{flag} {path}: key {name!r} is missing; was it saved from another --model?")
        if state[name].shape != value.shape:
            given, needed = tuple(state[name].shape), tuple(value.shape)
            raise UsageError(f"{flag} {path}: {name!r} has shape {given}, the model needs {needed}")
    for name in state:
        if name not in wanted:
            raise UsageError(f"{flag} {path}: key {name!r} is not in the model; was it saved from another --model?")
    module.load_state_dict(dict(state))
