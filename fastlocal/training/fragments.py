"""Parts of the parameters that are averaged in turns, as in Streaming DiLoCo (Douillard et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..aggregation.averager import Aggregator
from ..aggregation.server_optimizers import ServerOptimizer
from ..params.param_layout import ParamLayout

PARAMETERS = "parameters"
"""Name of the clients' own parameters, which they keep where a round averages a part of them."""


def fragment_columns(layout: ParamLayout, fragments: int) -> list[slice]:
    """Split the columns at bounds of parameters into `fragments` parts of sizes as near to each other as these allow.

    Args:
        layout: At least as many parameters as `fragments`.
        fragments: Number of parts, at least 1.
    """
    bounds, places = [0], layout.places
    for number in range(1, fragments):
        goal = number * layout.n_params / fragments
        # the bounds that leave a parameter for each part that follows
        last = len(places) - (fragments - number)
        ends = [place.stop for place in places[:last] if place.stop > bounds[-1]]
        bounds.append(min(ends, key=lambda end: abs(end - goal)))
    bounds.append(layout.n_params)
    return [slice(begin, end) for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]


@dataclass(frozen=True)
class Fragment:
    """A part of the parameters on the server.

    Attributes:
        columns: Its columns.
        aggregator: Averages them.
        optimizer: Steps from the start of a round towards the mean; None: the mean is the next model.
        prefix: Of the names of its state in resume.pt; "" for the only fragment.
    """

    columns: slice
    aggregator: Aggregator
    optimizer: ServerOptimizer | None
    prefix: str


@dataclass(frozen=True)
class Fragments:
    """All parts of the parameters, which rounds average in turns."""

    parts: Sequence[Fragment]

    def of(self, averages: int) -> Fragment:
        """Return the fragment of a round after a number of averages."""
        return self.parts[averages % len(self.parts)]

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the state of the server optimizers, as live references."""
        return {
            f"{part.prefix}{name}": value
            for part in self.parts
            if part.optimizer is not None
            for name, value in part.optimizer.state.items()
        }

    def partial_sums(self) -> dict[str, Tensor]:
        """Return the sums of the round so far; see Aggregator.partial_sums."""
        each = [(part.prefix, part.aggregator.partial_sums()) for part in self.parts]
        return {f"{prefix}{name}": value for prefix, sums in each for name, value in sums.items()}

    def error_feedback(self) -> dict[str, Tensor]:
        """Return the residuals of 16-bit compression; see Aggregator.error_feedback."""
        each = [(part.prefix, part.aggregator.error_feedback()) for part in self.parts]
        return {f"{prefix}{name}": value for prefix, residuals in each for name, value in residuals.items()}
