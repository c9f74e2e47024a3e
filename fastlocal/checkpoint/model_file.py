"""Model checkpoints: saving, loading without running code, and messages about mismatches."""

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
from .file_kinds import identify, likely_checkpoint
from .safetensors_file import is_safetensors, read_tensors

EXPECTED = "give a state_dict, written by torch.save or as .safetensors"
SWA_COUNTER, SWA_PREFIX = "n_averaged", "module."
"""Additions of torch.optim.swa_utils.AveragedModel to a state_dict: a tensor, and a prefix of all other names."""


def save_model(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state_dict for the plain module, with its tensors on the CPU; other values are written as they are."""
    plain = {
        name: value.detach().cpu().clone() if isinstance(value, Tensor) else value for name, value in state.items()
    }
    buffer = io.BytesIO()  # torch.save hides the error of a full disk
    torch.save(plain, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def read_state(path: Path, flag: str) -> dict[str, Tensor]:
    """Read a state_dict without running any code of the file.

    Args:
        path: The file.
        flag: The user's flag, for the message.

    Raises:
        UsageError: The file is missing, damaged, or holds anything but named tensors.
    """
    state = _tensors(path, flag)
    if SWA_COUNTER in state and all(name.startswith(SWA_PREFIX) for name in state if name != SWA_COUNTER):
        return {name.removeprefix(SWA_PREFIX): value for name, value in state.items() if name != SWA_COUNTER}
    return state


def _tensors(path: Path, flag: str) -> dict[str, Tensor]:
    if not os.path.isfile(path):
        problem = "no such file"
        if os.path.isdir(path):
            inside = likely_checkpoint(path)
            problem = "is a folder" if inside is None else f"is a folder; in it is {inside}"
        raise UsageError(f"{flag} {path}: {problem}; {EXPECTED}")
    try:
        if is_safetensors(path):
            return read_tensors(path, flag)
        foreign = identify(path)
    except OSError as error:
        raise UsageError(f"{flag} {path}: cannot be read ({error.strerror or error}); {EXPECTED}") from error
    if foreign is not None:
        raise UsageError(f"{flag} {path}: {foreign}; {EXPECTED}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about foreign formats; the message below is enough
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises almost anything for a damaged file
        raise UsageError(f"{flag} {path}: {_reason(error)}; {EXPECTED}") from error
    if not isinstance(state, Mapping) or not state:
        content = "nothing" if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise UsageError(f"{flag} {path}: holds {content}, not a state_dict of named tensors")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UsageError(f"{flag} {path}: {name!r} is a {type(value).__name__}, not a tensor; {_advice(state)}")
    return {str(name): value for name, value in state.items()}


def _advice(state: Mapping[Any, Any]) -> str:
    """Say how to save the model alone, for a checkpoint that holds more."""
    if "param_groups" in state:
        return "it is an optimizer's; give the state_dict alone of the model"
    whole = [name for name, value in state.items() if isinstance(value, Mapping) and _names_tensors(value)]
    return f"give the state_dict alone{f', saved from its {whole[0]!r}' if whole else ''}"


def _names_tensors(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(part, Tensor) for part in value.values())


def _reason(error: Exception) -> str:
    """Return the reason of torch's error, without its page about unsafe loading."""
    rejected = re.search(r"GLOBAL (\S+)", str(error))
    if rejected:
        return f"holds more than tensors ({rejected[1].rstrip('.')}), and what is no tensor is not loaded"
    if "TorchScript" in str(error):
        return "is a TorchScript archive"
    return "is truncated or no checkpoint at all"


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path, flag: str) -> None:
    """Load `state` into `module`.

    Raises:
        UsageError: A key is missing or unknown, or its value has another shape or kind, or is not finite.
    """
    expected = module.state_dict()
    for name, value in expected.items():
        if name not in state:
            other = next((key for key in state if key not in expected), None)
            instead = "" if other is None else f", but there is {other!r}"
            prefix = other.removesuffix(name) if other is not None and other.endswith(f".{name}") else ""
            hint = f"take {prefix!r} off every key" if prefix else "was it saved from another --model?"
            raise UsageError(f"{flag} {path}: key {name!r} is missing{instead}; {hint}")
        stored = state[name]
        if stored.shape != value.shape:
            shapes = f"{tuple(stored.shape)}, the model needs {tuple(value.shape)}"
            raise UsageError(f"{flag} {path}: {name!r} has shape {shapes}")
        dense = stored.layout == torch.strided and stored.device.type == "cpu"
        if stored.is_floating_point() != value.is_floating_point() or not dense:
            kind = f"{stored.dtype}, {stored.layout} on {stored.device}"
            raise UsageError(f"{flag} {path}: {name!r} is {kind}; the model needs dense {value.dtype}")
        if not stored.isfinite().all():
            raise UsageError(f"{flag} {path}: {name!r} holds NaN or infinity; give an earlier checkpoint")
    for name in state:
        if name not in expected:
            raise UsageError(f"{flag} {path}: key {name!r} is not in the model; was it saved from another --model?")
    module.load_state_dict(dict(state))
