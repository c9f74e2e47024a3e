"""Snapshots of tensors, arrays and random generators; each class is a state_holders.Holder."""

from __future__ import annotations

import array
import pickle
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

FEW_BYTES = 4096
"""Size up to which an array is cheap to compare."""


class Generator:
    """A random generator: one entry with its state."""

    in_place = True
    cheap = True

    def __init__(self, value: Any) -> None:
        self._value = value

    def snapshot(self) -> dict[Any, Any]:
        value = self._value
        state: Any
        if isinstance(value, torch.Generator):
            return {
                "": (value, value.get_state().cpu().numpy().tobytes())
            }  # of which pickle makes other bytes each time
        if isinstance(value, np.random.Generator):
            state = value.bit_generator.state
        else:
            state = value.getstate() if isinstance(value, random.Random) else value.get_state()
        return {"": (value, pickle.dumps(state))}

    def restore(self, before: dict[Any, Any]) -> None:
        value, content = before[""]
        if isinstance(value, torch.Generator):
            value.set_state(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            return
        state = pickle.loads(content)
        if isinstance(value, np.random.Generator):
            value.bit_generator.state = state
        elif isinstance(value, random.Random):
            value.setstate(state)
        else:
            value.set_state(state)


class Values:
    """A tensor: one entry with its values."""

    in_place = True
    cheap = False

    def __init__(self, value: Tensor) -> None:
        self._value = value

    def snapshot(self) -> dict[Any, Any]:
        return {"": self._value.detach().clone()}

    def restore(self, before: dict[Any, Any]) -> None:
        with torch.no_grad():
            self._value.copy_(before[""])


class Version:
    """A tensor: one entry with its version counter and its address."""

    in_place = True
    cheap = True

    def __init__(self, value: Tensor) -> None:
        self._value = value

    def snapshot(self) -> dict[Any, Any]:
        return {"": (self._value._version, self._value.data_ptr())}

    def restore(self, before: dict[Any, Any]) -> None:
        """Do nothing; Values restores the numbers."""


class Elements:
    """A NumPy array, an array.array or a bytearray: one entry with its values."""

    in_place = True

    def __init__(self, value: np.ndarray | array.array[Any] | bytearray) -> None:
        self._value = value
        self.cheap = len(self.snapshot()[""][1]) <= FEW_BYTES

    def snapshot(self) -> dict[Any, Any]:
        value = self._value
        if isinstance(value, bytearray):
            return {"": (len(value), bytes(value))}
        return {"": (str(value.shape) if isinstance(value, np.ndarray) else len(value), value.tobytes())}

    def restore(self, before: dict[Any, Any]) -> None:
        if self.snapshot() == before:
            return
        value, content = self._value, before[""][1]
        if isinstance(value, np.ndarray):
            value[...] = np.frombuffer(content, value.dtype).reshape(value.shape)
        elif isinstance(value, bytearray):
            value[:] = content
        else:
            del value[:]
            value.frombytes(content)
