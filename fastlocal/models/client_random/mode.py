"""A torch function mode in which a module's random draws belong to one client at one local step.

Each number is a function of (seed, client, local step, call, element), so dropout and torch's other draws do not depend
on chunks, executors or the number of processes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...kernels.composite import opened
from . import draws, dropout
from .words import ClientWords


class ClientRandom(TorchFunctionMode):
    """Give the draws within the mode to one client at one local step, in the order in which they are called.

    The mode covers dropout of every kind, attention's too, and the uniform, normal, Bernoulli and integer draws and
    permutations that torch takes from its default generator. A draw with `generator=` is left to that generator.
    """

    def __init__(self, seed: Tensor | int, client: Tensor, step: Tensor) -> None:
        """Begin a local step.

        Args:
            seed: The seed of the run, a number or int64 [].
            client: int64 [], the client's number.
            step: int64 [], the global number of the local step.
        """
        super().__init__()
        self._words = ClientWords(seed, client, step)

    @property
    def drawn(self) -> bool:
        """Return True if a random number was drawn within the mode."""
        return self._words.calls > 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in OPENED:
            with self:
                return opened(func)(*args, **kwargs)
        ours = DRAWS.get(func) if kwargs.get("generator") is None else None
        return func(*args, **kwargs) if ours is None else ours(self._words, *args, **kwargs)


OPENED = (F.multi_head_attention_forward, F.gumbel_softmax)
"""Python functions that draw through other functions. The mode's handler runs their bodies with the mode on again."""


DRAWS: dict[Any, Callable[..., Any]] = {
    F.dropout: dropout.dropout,
    torch.dropout: dropout.dropout,
    torch.dropout_: dropout.dropout_in_place,
    F.dropout1d: functools.partial(dropout.dropout_of_channels, space=1),
    F.dropout2d: functools.partial(dropout.dropout_of_channels, space=2),
    F.dropout3d: functools.partial(dropout.dropout_of_channels, space=3),
    torch.feature_dropout: dropout.feature_dropout,
    F.alpha_dropout: functools.partial(dropout.alpha_dropout, whole=False),
    F.feature_alpha_dropout: functools.partial(dropout.alpha_dropout, whole=True),
    F.scaled_dot_product_attention: dropout.attention,
    torch.rand: draws.factory("uniform"),
    torch.randn: draws.factory("normal"),
    torch.rand_like: draws.like("uniform"),
    torch.randn_like: draws.like("normal"),
    torch.normal: draws.normal,
    torch.randint: draws.randint,
    torch.randint_like: draws.randint_like,
    torch.randperm: draws.permutation,
    torch.bernoulli: draws.bernoulli,
    Tensor.bernoulli: draws.bernoulli,
    Tensor.bernoulli_: draws.bernoulli_in_place,
    Tensor.uniform_: draws.uniform_in_place,
    Tensor.normal_: draws.normal_in_place,
    Tensor.exponential_: draws.exponential_in_place,
}
