"""Label noise of local steps, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LabelNoise:
    """Replacement of labels by another class with probability p, drawn anew at each step."""

    p: float
    classes: int
    seed: int
