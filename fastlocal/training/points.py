"""Places of a training loop where it waits for its driver."""

from __future__ import annotations

from collections.abc import Generator
from enum import Enum
from typing import TypeAlias

from ..executors.jobs import ChunkJob
from ..executors.round_plan import RoundResult


class Point(Enum):
    """Places of a loop between its jobs."""

    ROUND = "before the local steps of a round"
    TRAINED = "after the local steps of a round"


LoopSteps: TypeAlias = Generator[ChunkJob | Point, RoundResult | None, None]
"""The generator of a loop: it yields points and jobs, and takes the results of the jobs."""
