"""The states of the generators that a process has: torch's, Python's and NumPy's."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def random_states(device: torch.device) -> list[Any]:
    """Of torch on a device, of Python and of NumPy, to be compared."""
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return [state.tolist(), random.getstate(), [np.asarray(part).tolist() for part in np.random.get_state()]]


@contextlib.contextmanager
def random_kept() -> Iterator[None]:
    """While it lasts, what is drawn from these generators is drawn again afterwards."""
    states = random.getstate(), np.random.get_state()
    with_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if with_cuda else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
