"""Which parts of a module train and which the user keeps in evaluation mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

Modes = Mapping[str, bool]
"""{name of a part: whether it is in training mode}."""


def training_modes(module: nn.Module) -> Modes:
    """Return the modes of a module in training, and leave it in them.

    A part is in evaluation mode where the module's own `train` puts it there, or where it was in evaluation mode
    while the module as a whole was in training mode.
    """
    kept = {name for name, part in module.named_modules() if module.training and not part.training}
    module.train()
    set_modes(module, {name: part.training and name not in kept for name, part in module.named_modules()})
    return modes_of(module)


def set_modes(module: nn.Module, modes: Modes) -> None:
    """Put every part of a module into its mode; parts that have no mode stay as they are."""
    for name, part in module.named_modules():
        part.training = modes.get(name, part.training)


@contextlib.contextmanager
def in_modes(module: nn.Module | None, modes: Modes) -> Iterator[None]:
    """Put every part of a module into its mode, and back at the end; None: do nothing."""
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
    """Move a module to a device, its real numbers in `dtype` and its complex ones in the complex type as wide.

    A buffer that has several names stays one.
    """
    wide = torch.complex128 if dtype == torch.float64 else torch.complex64
    done: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # and the tensors, as ids are used again

    def convert(value: torch.Tensor) -> torch.Tensor:
        if id(value) not in done:
            kind = dtype if value.is_floating_point() else wide if value.is_complex() else value.dtype
            done[id(value)] = value, value.to(device, kind)
        return done[id(value)][1]

    return module._apply(convert)
