"""Torch's random factories and random tensor methods, values from a client's own random words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlocal.kernels.philox import happens

from .words import ClientWords, Sizes, into


def _shape(size: tuple[Any, ...], named: dict[str, Any]) -> Sizes:
    """Return the shape that a factory was called with: f(2, 3), f((2, 3)) or f(size=(2, 3))."""
    sizes = named.get("size", size)
    return tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else tuple(sizes)


def factory(kind: str) -> Callable[..., Tensor]:
    """Make torch.rand (`kind` "uniform") or torch.randn ("normal")."""

    def make(random: ClientWords, *size: Any, dtype: Any = None, device: Any = None, **named: Any) -> Tensor:
        values: Tensor = getattr(random, kind)(_shape(size, named), dtype, device)
        return values.requires_grad_() if named.get("requires_grad") else values

    return make


def like(kind: str) -> Callable[..., Tensor]:
    """Make torch.rand_like (`kind` "uniform") or torch.randn_like ("normal")."""

    def make(random: ClientWords, input: Tensor, *, dtype: Any = None, device: Any = None, **named: Any) -> Tensor:
        values: Tensor = getattr(random, kind)(input.shape, dtype or input.dtype, device or input.device)
        return values.requires_grad_() if named.get("requires_grad") else values

    return make


def bernoulli(random: ClientWords, input: Tensor, p: float | None = None, *, generator: Any = None) -> Tensor:
    """Compute torch.bernoulli: probability `p`, or `input` element by element."""
    words = random.words(input.shape)
    likely = happens(words, p) if p is not None else words.double() < input.double() * 2.0**32
    return likely.to(input.dtype)


def bernoulli_in_place(random: ClientWords, input: Tensor, p: Any = 0.5, *, generator: Any = None) -> Tensor:
    """Compute Tensor.bernoulli_, where `p` is a number or a tensor."""
    words = random.words(input.shape)
    likely = words.double() < p.double() * 2.0**32 if isinstance(p, Tensor) else happens(words, p)
    return into(input, likely.to(input.dtype))


def uniform_in_place(
    random: ClientWords, input: Tensor, from_: float = 0.0, to: float = 1.0, *, generator: Any = None, **named: float
) -> Tensor:
    """Compute Tensor.uniform_, whose parameter `from` is a keyword of Python."""
    low = named.get("from", from_)
    return into(input, low + (to - low) * random.uniform(input.shape, input.dtype, input.device))


def normal_in_place(
    random: ClientWords, input: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None
) -> Tensor:
    """Compute Tensor.normal_."""
    return into(input, mean + std * random.normal(input.shape, input.dtype, input.device))


def exponential_in_place(random: ClientWords, input: Tensor, lambd: float = 1.0, *, generator: Any = None) -> Tensor:
    """Compute Tensor.exponential_ by inversion."""
    return into(input, -torch.log1p(-random.uniform(input.shape, input.dtype, input.device)) / lambd)


def normal(random: ClientWords, mean: Any, std: Any = 1.0, size: Any = None, **named: Any) -> Tensor:
    """Compute torch.normal, where `mean` and `std` are numbers or tensors."""
    like = next((value for value in (mean, std) if isinstance(value, Tensor)), None)
    if like is None:
        return mean + std * random.normal(tuple(size), named.get("dtype"), named.get("device"))
    shape = torch.broadcast_shapes(*(value.shape for value in (mean, std) if isinstance(value, Tensor)))
    return mean + std * random.normal(shape, like.dtype, like.device)


def randint(random: ClientWords, *bounds: Any, dtype: Any = None, device: Any = None, **named: Any) -> Tensor:
    """Compute torch.randint."""
    *numbers, size = (*bounds, named["size"]) if "size" in named else bounds
    low = named.get("low", 0 if len(numbers) < 2 else numbers[0])
    high = named.get("high", numbers[-1] if numbers else 0)
    return _integers(random, tuple(size), low, high, dtype or torch.int64, device)


def randint_like(random: ClientWords, input: Tensor, *bounds: int, dtype: Any = None, **named: Any) -> Tensor:
    """Compute torch.randint_like."""
    low, high = named.get("low", 0 if len(bounds) < 2 else bounds[0]), named.get("high", bounds[-1] if bounds else 0)
    return _integers(random, input.shape, low, high, dtype or input.dtype, input.device)


def _integers(random: ClientWords, shape: Sizes, low: int, high: int, dtype: torch.dtype, device: Any) -> Tensor:
    if not 0 < high - low <= 2**31:
        raise RuntimeError(f"random integers from {low} to {high}: the range must hold 1 to 2^31 numbers")
    values = (((random.words(shape) * (high - low)) >> 32) + low).to(dtype)
    return values if device is None else values.to(device)


def permutation(random: ClientWords, n: int, *, dtype: Any = None, device: Any = None, **named: Any) -> Tensor:
    """Compute torch.randperm: the order of n random words."""
    order = random.words((n,)).argsort(stable=True).to(dtype or torch.int64)
    return order if device is None else order.to(device)
