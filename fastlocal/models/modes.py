"""Training and evaluation modes of a module's parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

Modes = Mapping[str, bool]
"""{name of a part: whether it is in training mode}."""


def training_modes(module: nn.Module) -> Modes:
    """Set a module to its training modes and return them.

    A part is in evaluation mode if the module's own `train` sets it so, or if it was in evaluation mode while the whole
    module was in training mode.
    """
    frozen = {name for name, part in module.named_modules() if module.training and not part.training}
    module.train()
    set_modes(module, {name: part.training and name not in frozen for name, part in module.named_modules()})
    return modes_of(module)


def set_modes(module: nn.Module, modes: Modes) -> None:
    """Set every part of a module to its mode; parts without an entry do not change."""
    for name, part in module.named_modules():
        part.training = modes.get(name, part.training)


@contextlib.contextmanager
def in_modes(module: nn.Module | None, modes: Modes) -> Iterator[None]:
    """Set every part of a module to its mode, and restore the modes at the end of the block; None does nothing."""
    before = {} if module is None else modes_of(module)
    if module is not None:
        set_modes(module, modes)
    try:
        yield
    finally:
        if module is not None:
            set_modes(module, before)


def modes_of(module: nn.Module) -> Modes:
    """Return the modes of all parts."""
    return {name: part.training for name, part in module.named_modules()}


def cast(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a module to a device, and convert real tensors to `dtype` and complex ones to complex64 or complex128.

    A buffer with several names stays one tensor.
    """
    wide = torch.complex128 if dtype == torch.float64 else torch.complex64
    done: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # holds the old tensors too, so that no id is reused

    def convert(value: torch.Tensor) -> torch.Tensor:
        if id(value) not in done:
            kind = dtype if value.is_floating_point() else wide if value.is_complex() else value.dtype
            done[id(value)] = value, value.to(device, kind)
        return done[id(value)][1]

    return module._apply(convert)
