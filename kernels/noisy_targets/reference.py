"""Labels under label noise in plain torch; also the CPU implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..philox import Purpose, below, draw, happens


def noisy_targets(
    targets: Tensor, *, p: Tensor | float, classes: int, seed: Tensor | int, clients: Tensor, step: Tensor | int
) -> Tensor:
    """Replace each label, with probability p, by a uniform draw from the other classes.

    Source: Damian, Ma, Lee, "Label noise SGD provably prefers flat global minimizers", NeurIPS 2021.

    Args:
        targets: int64 [..., batch].
        p: Probability of a replacement, a number or floating [...]; float64 decides as the number does.
        classes: Number of classes, at least 2.
        seed: Seed of the run, a number or int64 [...].
        clients: int64 [...].
        step: Global local step, a number or int64 [...].
    """
    words = draw(seed, Purpose.LABEL_NOISE, clients, step, targets.shape[-1])
    other = (targets + 1 + below(words[1], classes - 1)) % classes
    replaced = happens(words[0], p.unsqueeze(-1) if isinstance(p, Tensor) else p)
    return torch.where(replaced, other, targets)
