"""The labels that a loss sees under label noise, in plain torch; also the CPU path."""

from __future__ import annotations

import torch
from torch import Tensor

from ..philox import Purpose, below, draw, happens


def noisy_targets(
    targets: Tensor, *, p: float, classes: int, seed: int, clients: Tensor, step: Tensor | int
) -> Tensor:
    """Each label replaced, with probability p, by one drawn uniformly from the other classes.

    targets: int64 [..., batch]        clients: int64 [...]        step: a number or int64 [...]
    classes: at least 2
    Source: Damian, Ma, Lee, "Label noise SGD provably prefers flat global minimizers", NeurIPS 2021.
    """
    words = draw(seed, Purpose.LABEL_NOISE, clients, step, targets.shape[-1])
    other = (targets + 1 + below(words[1], classes - 1)) % classes
    return torch.where(happens(words[0], p), other, targets)
