"""Detect code that sets the state of torch's random numbers."""

from __future__ import annotations

import sys
import types
from typing import Any

import torch

_FUNCTIONS = (torch.random.manual_seed, torch.random.set_rng_state, torch.random.seed, torch.cuda.manual_seed)
_SETTERS = frozenset({"manual_seed", "set_state", "seed"})


class SeedingWatch:
    """Record the first call within the block that seeds torch's default generator or sets its state.

    A profile function sees calls however the function was imported. torch.random.fork_rng sets the state at its end.

    Attributes:
        setter: Name of the function, or None.
    """

    def __init__(self) -> None:
        self.setter: str | None = None
        self._codes = {function.__code__ for function in map(_unwrap, _FUNCTIONS)}

    def __enter__(self) -> SeedingWatch:
        self._idle = sys.getprofile() is None  # a profiler of the user's, such as cProfile, cannot be put back
        if self._idle:
            sys.setprofile(self._event)
        return self

    def __exit__(self, *error: object) -> None:
        if self._idle:
            sys.setprofile(None)

    def _event(self, frame: types.FrameType, event: str, function: Any) -> None:
        if self.setter is not None:
            return
        if event == "call" and frame.f_code in self._codes:
            self.setter = f"torch.{frame.f_code.co_name}"
        elif event == "c_call" and getattr(function, "__self__", None) is torch.default_generator:
            if function.__name__ in _SETTERS:
                self.setter = f"torch.Generator.{function.__name__}"


def _unwrap(function: Any) -> types.FunctionType:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    assert isinstance(function, types.FunctionType)
    return function
