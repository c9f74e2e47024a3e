"""Save and restore the caller's global state: random generators of torch, Python and NumPy, and autograd's mode."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def random_states(device: torch.device) -> list[Any]:
    """Return the generator states of torch on `device`, of Python and of NumPy, for comparison."""
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return [state.tolist(), random.getstate(), [np.asarray(part).tolist() for part in np.random.get_state()]]


@contextlib.contextmanager
def preserve_random_states() -> Iterator[None]:
    """Restore the generators at the end, so that the caller draws the same numbers afterwards."""
    states = random.getstate(), np.random.get_state()
    with_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if with_cuda else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextlib.contextmanager
def enable_autograd() -> Iterator[None]:
    """Enable gradients, whatever the caller's mode is."""
    with contextlib.ExitStack() as modes:
        if torch.is_inference_mode_enabled():  # inference mode disables more of autograd than gradients
            modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        yield
