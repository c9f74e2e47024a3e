"""Checkpoints: saves, loads that cannot run code, and messages that say what does not fit."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common.atomic_file import write_atomically
from ..common.errors import UsageError
from .file_kinds import in_folder, what_it_is
from .safetensors_file import is_safetensors, read_tensors

WANTED = "give a state_dict, written by torch.save or as .safetensors"
COUNTER, MEMBER = "n_averaged", "module."
"""What torch.optim.swa_utils.AveragedModel adds to a state_dict: a tensor, and a prefix of all other names."""


def save_model(path: Path, state: Mapping[str, Any]) -> None:
    """Write a plain state_dict on the CPU that loads into the plain module; what is no tensor is written as it is."""
    plain = {
        name: value.detach().cpu().clone() if isinstance(value, Tensor) else value for name, value in state.items()
    }
    held = io.BytesIO()  # torch.save hides what goes wrong on a full disk
    torch.save(plain, held)
    write_atomically(path, lambda file: file.write(held.getbuffer()))


def read_state(path: Path, flag: str) -> dict[str, Tensor]:
    """The state_dict in `path`; no code that the file may hold is run.

    flag: what the user set, for the message
    Raises UsageError where the file is missing, torn or holds anything but named tensors.
    """
    state = _tensors(path, flag)
    if COUNTER in state and all(name.startswith(MEMBER) for name in state if name != COUNTER):
        return {name.removeprefix(MEMBER): value for name, value in state.items() if name != COUNTER}
    return state


def _tensors(path: Path, flag: str) -> dict[str, Tensor]:
    if not os.path.isfile(path):
        given = "no such file"
        if os.path.isdir(path):
            inside = in_folder(path)
            given = "is a folder" if inside is None else f"is a folder; in it is {inside}"
        raise UsageError(f"{flag} {path}: {given}; {WANTED}")
    try:
        if is_safetensors(path):
            return read_tensors(path, flag)
        foreign = what_it_is(path)
    except OSError as error:
        raise UsageError(f"{flag} {path}: cannot be read ({error.strerror or error}); {WANTED}") from error
    if foreign is not None:
        raise UsageError(f"{flag} {path}: {foreign}; {WANTED}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's on foreign formats; what matters ends in the message
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes at random make torch raise almost anything
        raise UsageError(f"{flag} {path}: {_reason(error)}; {WANTED}") from error
    if not isinstance(state, Mapping) or not state:
        given = "nothing" if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise UsageError(f"{flag} {path}: holds {given}, not a state_dict of named tensors")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UsageError(f"{flag} {path}: {name!r} is a {type(value).__name__}, not a tensor; {_alone(state)}")
    return {str(name): value for name, value in state.items()}


def _alone(state: Mapping[Any, Any]) -> str:
    """What would do, of a checkpoint that holds more than a model."""
    if "param_groups" in state:
        return "it is an optimizer's; give the state_dict alone of the model"
    whole = [name for name, value in state.items() if isinstance(value, Mapping) and _names_tensors(value)]
    return f"give the state_dict alone{f', saved from its {whole[0]!r}' if whole else ''}"


def _names_tensors(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(part, Tensor) for part in value.values())


def _reason(error: Exception) -> str:
    """Why torch did not load a file, without the page that it writes about unsafe ways to load it."""
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused:
        return f"holds more than tensors ({refused[1].rstrip('.')}), and what is no tensor is not loaded"
    if "TorchScript" in str(error):
        return "is a TorchScript archive"
    return "is truncated or no checkpoint at all"


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path, flag: str) -> None:
    """Load `state`, or raise UsageError that names the first key that is missing, unknown, of another shape or kind, or
    not finite."""
    wanted = module.state_dict()
    for name, value in wanted.items():
        if name not in state:
            other = next((key for key in state if key not in wanted), None)
            instead = "" if other is None else f", but there is {other!r}"
            prefix = other.removesuffix(name) if other is not None and other.endswith(f".{name}") else ""
            hint = f"take {prefix!r} off every key" if prefix else "was it saved from another --model?"
            raise UsageError(f"{flag} {path}: key {name!r} is missing{instead}; {hint}")
        given = state[name]
        if given.shape != value.shape:
            shapes = f"{tuple(given.shape)}, the model needs {tuple(value.shape)}"
            raise UsageError(f"{flag} {path}: {name!r} has shape {shapes}")
        dense = given.layout == torch.strided and given.device.type == "cpu"
        if given.is_floating_point() != value.is_floating_point() or not dense:
            kind = f"{given.dtype}, {given.layout} on {given.device}"
            raise UsageError(f"{flag} {path}: {name!r} is {kind}; the model needs dense {value.dtype}")
        if not given.isfinite().all():
            raise UsageError(f"{flag} {path}: {name!r} holds NaN or infinity; give an earlier checkpoint")
    for name in state:
        if name not in wanted:
            raise UsageError(f"{flag} {path}: key {name!r} is not in the model; was it saved from another --model?")
    module.load_state_dict(dict(state))
