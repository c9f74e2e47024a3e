"""What a caller finds as it was: the states of the generators of torch, Python and NumPy, and autograd's mode."""

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


@contextlib.contextmanager
def autograd_on() -> Iterator[None]:
    """While it lasts, results have gradients, whatever the caller's mode is."""
    with contextlib.ExitStack() as modes:
        if torch.is_inference_mode_enabled():  # leaving it turns on more of autograd than gradients
            modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        yield
