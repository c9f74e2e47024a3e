"""The random words of one client at one local step, and the numbers that are made of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastlocal.kernels.module_draws import MAX_CALLS, module_words
from fastlocal.kernels.philox import happens

Sizes = tuple[int, ...] | torch.Size


class ClientWords:
    """Draw numbers by calls: element e of call c is Philox of (seed, client, local step, c, e).

    Attributes:
        calls: How many draws were made.
    """

    def __init__(self, seed: Tensor | int, client: Tensor, step: Tensor) -> None:
        """Start the sequence.

        Args:
            seed: The seed of the run, a number or int64 [].
            client: int64 [], the client's number.
            step: int64 [], the global number of the local step.
        """
        self._seed, self._client, self._step = seed, client, step
        self.calls = 0

    def words(self, shape: Sizes) -> Tensor:
        """Draw int64 words in [0, 2^32), of shape [*shape]."""
        if self.calls >= MAX_CALLS:
            raise RuntimeError(f"a local step draws random numbers more than {MAX_CALLS:,} times")
        size = math.prod(shape)
        words = module_words(self._client, self._step, size, self.calls, self._seed)
        self.calls += 1
        return words.reshape(tuple(shape))

    def uniform(self, shape: Sizes, dtype: torch.dtype | None, device: Any = None) -> Tensor:
        """Draw uniform numbers in [0, 1) with 24 random bits, or 48 in float64, of shape [*shape]."""
        dtype = dtype or torch.get_default_dtype()
        if dtype == torch.float64:
            high, low = self.words((2, *shape))
            values = (high >> 8).double() * 2.0**-24 + (low >> 8).double() * 2.0**-48
        else:
            values = ((self.words(shape) >> 8).float() * 2.0**-24).to(dtype)
            values = values.clamp(max=1 - torch.finfo(dtype).eps / 2) if dtype != torch.float32 else values
        return values if device is None else values.to(device)

    def normal(self, shape: Sizes, dtype: torch.dtype | None, device: Any = None) -> Tensor:
        """Draw standard normal numbers of shape [*shape] by the method of Box and Muller (1958)."""
        dtype = dtype or torch.get_default_dtype()
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        radius, angle = self.uniform((2, *shape), wide)
        values = ((-2.0 * torch.log1p(-radius)).sqrt() * torch.cos(2 * math.pi * angle)).to(dtype)
        return values if device is None else values.to(device)

    def keeps(self, shape: Sizes, p: float) -> Tensor:
        """Draw a bool mask of shape [*shape] that is False with probability p."""
        return ~happens(self.words(shape), p)


def into(input: Tensor, values: Tensor, inplace: bool = True) -> Tensor:
    """Write `values` into `input` if `inplace`, and return the tensor that holds them.

    A tensor that the clients share cannot hold a value for each client; then `values` is returned and `input` stays.
    """
    if not inplace or values is input:
        return values
    try:
        return input.copy_(values)
    except RuntimeError:
        return values
