"""Tensors, arrays and generators of random numbers: how their numbers are copied, and how the copy is put back."""

from __future__ import annotations

import array
import pickle
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

FEW_BYTES = 4096
"""Arrays of at most this size are cheap to compare."""


class Generator:
    """A generator of random numbers and its state, as one entry."""

    in_place = True
    cheap = True

    def __init__(self, value: Any) -> None:
        self._value = value

    def take(self) -> dict[Any, Any]:
        value = self._value
        state: Any
        if isinstance(value, np.random.Generator):
            state = value.bit_generator.state
        else:
            state = value.getstate() if isinstance(value, random.Random) else value.get_state()
        return {"": (value, pickle.dumps(state))}

    def put(self, before: dict[Any, Any]) -> None:
        value, state = before[""][0], pickle.loads(before[""][1])
        if isinstance(value, np.random.Generator):
            value.bit_generator.state = state
        elif isinstance(value, random.Random):
            value.setstate(state)
        else:
            value.set_state(state)


class Values:
    """The numbers of a tensor, as one entry."""

    in_place = True
    cheap = False

    def __init__(self, value: Tensor) -> None:
        self._value = value

    def take(self) -> dict[Any, Any]:
        return {"": self._value.detach().clone()}

    def put(self, before: dict[Any, Any]) -> None:
        with torch.no_grad():
            self._value.copy_(before[""])


class Version:
    """How often a tensor was changed in place, and where it lies, as one entry."""

    in_place = True
    cheap = True

    def __init__(self, value: Tensor) -> None:
        self._value = value

    def take(self) -> dict[Any, Any]:
        return {"": (self._value._version, self._value.data_ptr())}

    def put(self, before: dict[Any, Any]) -> None:
        """Nothing is to be put back, as Values puts the numbers back."""


class Elements:
    """The numbers of a NumPy array, an array.array or a bytearray, as one entry."""

    in_place = True

    def __init__(self, value: np.ndarray | array.array[Any] | bytearray) -> None:
        self._value = value
        self.cheap = len(self.take()[""][1]) <= FEW_BYTES

    def take(self) -> dict[Any, Any]:
        value = self._value
        return {
            "": (
                str(getattr(value, "shape", len(value))),
                bytes(value) if isinstance(value, bytearray) else value.tobytes(),
            )
        }

    def put(self, before: dict[Any, Any]) -> None:
        if self.take() == before:
            return
        value, content = self._value, before[""][1]
        if isinstance(value, np.ndarray):
            value[...] = np.frombuffer(content, value.dtype).reshape(value.shape)
        elif isinstance(value, bytearray):
            value[:] = content
        else:
            del value[:]
            value.frombytes(content)
