"""What a module draws itself, as a function of (seed, client, local step, call, element).

Dropout and torch's other draws then depend on nothing else: on no chunk, executor or number of processes.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastlocal.kernels.module_draws import MOST_CALLS, module_words
from fastlocal.kernels.philox import happens

Sizes = tuple[int, ...] | torch.Size
ALPHA = 1.7580993408473766
"""Of SELU, minus the product of its two constants is what alpha dropout puts in place of a value."""


class ClientRandom(TorchFunctionMode):
    """Within, one client's draws at one local step, in the order in which they are called.

    Covers dropout of every kind, attention's too, and the uniform, normal, Bernoulli and integer draws and
    permutations that torch takes from its own generator. Where a generator is given, it is the one that is asked.

    Attributes:
        drawn: Whether anything was drawn.
    """

    def __init__(self, seed: int, client: Tensor, step: Tensor) -> None:
        """Begin a local step.

        Args:
            seed: Of the run.
            client: int64 [], its number.
            step: int64 [], the global number of the local step.
        """
        super().__init__()
        self._seed, self._client, self._step = seed, client, step
        self._calls = 0

    @property
    def drawn(self) -> bool:
        """Whether anything was drawn."""
        return self._calls > 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in OPENED:
            with self:
                return _opened(func)(*args, **kwargs)
        ours = DRAWS.get(func) if kwargs.get("generator") is None else None
        return func(*args, **kwargs) if ours is None else ours(self, *args, **kwargs)

    def words(self, shape: Sizes) -> Tensor:
        """int64 [*shape] of words in [0, 2^32)."""
        if self._calls >= MOST_CALLS:
            raise RuntimeError(f"a local step draws random numbers more than {MOST_CALLS:,} times")
        size = math.prod(shape)
        words = module_words(self._client, self._step, size, self._calls, self._seed)
        self._calls += 1
        return words.reshape(tuple(shape))

    def uniform(self, shape: Sizes, dtype: torch.dtype | None, device: Any = None) -> Tensor:
        """[*shape] in [0, 1), of 24 bits, of float64 48."""
        dtype = dtype or torch.get_default_dtype()
        if dtype == torch.float64:
            high, low = self.words((2, *shape))
            values = (high >> 8).double() * 2.0**-24 + (low >> 8).double() * 2.0**-48
        else:
            values = ((self.words(shape) >> 8).float() * 2.0**-24).to(dtype)
            values = values.clamp(max=1 - torch.finfo(dtype).eps / 2) if dtype != torch.float32 else values
        return values if device is None else values.to(device)

    def normal(self, shape: Sizes, dtype: torch.dtype | None, device: Any = None) -> Tensor:
        """[*shape] of a standard normal distribution, by Box and Muller."""
        dtype = dtype or torch.get_default_dtype()
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        radius, angle = self.uniform((2, *shape), wide)
        values = ((-2.0 * torch.log1p(-radius)).sqrt() * torch.cos(2 * math.pi * angle)).to(dtype)
        return values if device is None else values.to(device)

    def keeps(self, shape: Sizes, p: float) -> Tensor:
        """bool [*shape], False with probability p."""
        return ~happens(self.words(shape), p)


def _dropped(mode: ClientRandom, input: Tensor, p: float, training: bool, shape: Sizes) -> Tensor:
    """Dropout whose mask has `shape`, broadcast to that of the input."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training or p == 0.0:
        return input
    if p == 1.0:
        return input * 0.0
    return torch.where(mode.keeps(shape, p), input / (1.0 - p), input.new_zeros(()))


def _dropout(
    mode: ClientRandom, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, train: bool = True
) -> Tensor:
    return _into(input, _dropped(mode, input, p, training and train, input.shape), inplace)


def _dropout_in_place(mode: ClientRandom, input: Tensor, p: float, train: bool) -> Tensor:
    return _dropout(mode, input, p, train, True)


def _channels(
    mode: ClientRandom, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, space: int
) -> Tensor:
    """Of dropout1d, dropout2d and dropout3d: whole channels, also of inputs without a batch."""
    lead = input.dim() - space
    shape = (*input.shape[:lead], *(1 for _ in range(space)))
    return _into(input, _dropped(mode, input, p, training, shape), inplace)


def _feature_dropout(mode: ClientRandom, input: Tensor, p: float, train: bool) -> Tensor:
    return _dropped(mode, input, p, train, (*input.shape[:2], *(1 for _ in input.shape[2:])))


def _alpha(
    mode: ClientRandom, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False, *, whole: bool
) -> Tensor:
    """Klambauer et al. (2017): dropped values become that of a saturated SELU; mean and variance stay."""
    if not training or p == 0.0:
        return input
    if p == 1.0:
        return _into(input, input * 0.0, inplace)
    shape = (*input.shape[:2], *(1 for _ in input.shape[2:])) if whole else input.shape
    scale = 1.0 / math.sqrt((ALPHA * ALPHA * p + 1.0) * (1.0 - p))
    kept = torch.where(mode.keeps(shape, p), input, input.new_full((), -ALPHA))
    return _into(input, kept * scale + scale * ALPHA * p, inplace)


def _attention(
    mode: ClientRandom,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention, written out where it drops."""
    if dropout_p == 0.0:
        more = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        result: Tensor = F.scaled_dot_product_attention(query, key, value, **more)  # type: ignore[arg-type]
        return result
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value))
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = scores.softmax(-1)
    return _dropped(mode, weights, dropout_p, True, weights.shape) @ value


def _into(input: Tensor, values: Tensor, inplace: bool = True) -> Tensor:
    """`values`, written to `input` where that is asked for; a tensor that clients share cannot hold those of each."""
    if not inplace or values is input:
        return values
    try:
        return input.copy_(values)
    except RuntimeError:
        return values


def _shape(size: tuple[Any, ...], named: dict[str, Any]) -> Sizes:
    """Of the factories, which take sizes one by one or together."""
    given = named.get("size", size)
    return tuple(given[0]) if len(given) == 1 and not isinstance(given[0], int) else tuple(given)


def _factory(kind: str) -> Callable[..., Tensor]:
    def make(mode: ClientRandom, *size: Any, dtype: Any = None, device: Any = None, **named: Any) -> Tensor:
        drawn: Tensor = getattr(mode, kind)(_shape(size, named), dtype, device)
        return drawn.requires_grad_() if named.get("requires_grad") else drawn

    return make


def _like(kind: str) -> Callable[..., Tensor]:
    def make(mode: ClientRandom, input: Tensor, *, dtype: Any = None, device: Any = None, **named: Any) -> Tensor:
        drawn: Tensor = getattr(mode, kind)(input.shape, dtype or input.dtype, device or input.device)
        return drawn.requires_grad_() if named.get("requires_grad") else drawn

    return make


def _bernoulli(mode: ClientRandom, input: Tensor, p: float | None = None, *, generator: Any = None) -> Tensor:
    words = mode.words(input.shape)
    likely = happens(words, p) if p is not None else words.double() < input.double() * 2.0**32
    return likely.to(input.dtype)


def _bernoulli_in_place(mode: ClientRandom, input: Tensor, p: Any = 0.5, *, generator: Any = None) -> Tensor:
    words = mode.words(input.shape)
    likely = words.double() < p.double() * 2.0**32 if isinstance(p, Tensor) else happens(words, p)
    return _into(input, likely.to(input.dtype))


def _uniform_in_place(
    mode: ClientRandom, input: Tensor, from_: float = 0.0, to: float = 1.0, *, generator: Any = None, **named: float
) -> Tensor:
    low = named.get("from", from_)
    return _into(input, low + (to - low) * mode.uniform(input.shape, input.dtype, input.device))


def _normal_in_place(
    mode: ClientRandom, input: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None
) -> Tensor:
    return _into(input, mean + std * mode.normal(input.shape, input.dtype, input.device))


def _exponential_in_place(mode: ClientRandom, input: Tensor, lambd: float = 1.0, *, generator: Any = None) -> Tensor:
    return _into(input, -torch.log1p(-mode.uniform(input.shape, input.dtype, input.device)) / lambd)


def _normal(mode: ClientRandom, mean: Any, std: Any = 1.0, size: Any = None, **named: Any) -> Tensor:
    like = next((value for value in (mean, std) if isinstance(value, Tensor)), None)
    if like is None:
        return mean + std * mode.normal(tuple(size), named.get("dtype"), named.get("device"))
    shape = torch.broadcast_shapes(*(value.shape for value in (mean, std) if isinstance(value, Tensor)))
    return mean + std * mode.normal(shape, like.dtype, like.device)


def _randint(mode: ClientRandom, *bounds: Any, dtype: Any = None, device: Any = None, **named: Any) -> Tensor:
    *numbers, size = (*bounds, named["size"]) if "size" in named else bounds
    low = named.get("low", 0 if len(numbers) < 2 else numbers[0])
    high = named.get("high", numbers[-1] if numbers else 0)
    return _integers(mode, tuple(size), low, high, dtype or torch.int64, device)


def _randint_like(mode: ClientRandom, input: Tensor, *bounds: int, dtype: Any = None, **named: Any) -> Tensor:
    low, high = named.get("low", 0 if len(bounds) < 2 else bounds[0]), named.get("high", bounds[-1] if bounds else 0)
    return _integers(mode, input.shape, low, high, dtype or input.dtype, input.device)


def _integers(mode: ClientRandom, shape: Sizes, low: int, high: int, dtype: torch.dtype, device: Any) -> Tensor:
    if not 0 < high - low <= 2**31:
        raise RuntimeError(f"random integers from {low} to {high}: the range must hold 1 to 2^31 numbers")
    values = (((mode.words(shape) * (high - low)) >> 32) + low).to(dtype)
    return values if device is None else values.to(device)


def _permutation(mode: ClientRandom, n: int, *, dtype: Any = None, device: Any = None, **named: Any) -> Tensor:
    order = mode.words((n,)).argsort(stable=True).to(dtype or torch.int64)
    return order if device is None else order.to(device)


OPENED = (F.multi_head_attention_forward, F.gumbel_softmax)
"""Functions in Python that draw by calling others: within a mode's own handler those would not be seen."""


@functools.cache
def _opened(func: Callable[..., Any]) -> Callable[..., Any]:
    """The body of a function of torch.nn.functional, which asks no mode before it begins."""
    assert isinstance(func, types.FunctionType)
    asks = [name for name in func.__globals__ if name.startswith("has_torch_function")]
    names = func.__globals__ | dict.fromkeys(asks, lambda *tensors: False)
    body = types.FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    body.__kwdefaults__ = func.__kwdefaults__
    return body


DRAWS: dict[Any, Callable[..., Any]] = {
    F.dropout: _dropout,
    torch.dropout: _dropout,
    torch.dropout_: _dropout_in_place,
    F.dropout1d: functools.partial(_channels, space=1),
    F.dropout2d: functools.partial(_channels, space=2),
    F.dropout3d: functools.partial(_channels, space=3),
    torch.feature_dropout: _feature_dropout,
    F.alpha_dropout: functools.partial(_alpha, whole=False),
    F.feature_alpha_dropout: functools.partial(_alpha, whole=True),
    F.scaled_dot_product_attention: _attention,
    torch.rand: _factory("uniform"),
    torch.randn: _factory("normal"),
    torch.rand_like: _like("uniform"),
    torch.randn_like: _like("normal"),
    torch.normal: _normal,
    torch.randint: _randint,
    torch.randint_like: _randint_like,
    torch.randperm: _permutation,
    torch.bernoulli: _bernoulli,
    Tensor.bernoulli: _bernoulli,
    Tensor.bernoulli_: _bernoulli_in_place,
    Tensor.uniform_: _uniform_in_place,
    Tensor.normal_: _normal_in_place,
    Tensor.exponential_: _exponential_in_place,
}
