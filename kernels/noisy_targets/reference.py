"""Labels under label noise in plain torch; also the CPU implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from ..philox import Purpose, below, draw, happens


def noisy_targets(targets: Tensor, *, p: float, classes: int, seed: int, clients: Tensor, step: Tensor | int) -> Tensor:
    """Replace each label, with probability p, by a uniform draw from the other classes.

    Source: Damian, Ma, Lee, "Label noise SGD provably prefers flat global minimizers", NeurIPS 2021.

    Args:
        targets: int64 [..., batch].
        p: Probability of a replacement.
        classes: Number of classes, at least 2.
        seed: Seed of the run.
        clients: int64 [...].
        step: Global local step, a number or int64 [...].
    """
    words = draw(seed, Purpose.LABEL_NOISE, clients, step, targets.shape[-1])
    other = (targets + 1 + below(words[1], classes - 1)) % classes
    return torch.where(happens(words[0], p), other, targets)
