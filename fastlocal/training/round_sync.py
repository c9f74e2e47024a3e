"""Exchange of the ranks at the end of a round's local steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..distributed.world import World
from ..schedule.cursor import PartialRound, TrainStats
from ..schedule.rounds import RoundSchedule


@dataclass(frozen=True)
class RoundSync:
    """The local steps of a round, over the clients of all ranks.

    Attributes:
        stats: Sums over the clients.
        bad: (step, client, description) of every first non-finite value.
        save: Highest number of a save that a rank began or was asked for.
        losses: [clients][local_steps] if every step is logged, else empty; 0 or nothing after a client's last step.
        own_results: Results of the clients' own models, by clients.
    """

    stats: TrainStats
    bad: list[tuple[int, int, str]]
    save: int
    losses: list[list[float]]
    own_results: list[list[Any]]


def sync_round(world: World, what: str, so_far: PartialRound, save: int, *, losses: bool) -> RoundSync:
    """Wait until every rank has trained its clients for a round.

    Args:
        world: The ranks.
        what: Name of the round, for error messages.
        so_far: The round of this rank's clients.
        save: Number of this rank's last requested save.
        losses: Whether to gather the loss of every step.
    """
    own = {
        "stats": vars(so_far.stats),  # a tenth of the time of dataclasses.asdict
        "bad": so_far.bad,
        "save": save,
        "own_results": so_far.own_results,
        "losses": [
            (row, column)
            for rows, chunk in zip(so_far.done, so_far.losses, strict=True)
            for row, column in zip(rows, chunk.t().tolist(), strict=True)
        ]
        if losses
        else [],
    }
    ranks = world.all_gather_object(own, what)
    stats = TrainStats()
    for rank in ranks:
        stats.add(TrainStats(**rank["stats"]))
    return RoundSync(
        stats=stats,
        bad=[(step, client, text) for rank in ranks for step, client, text in rank["bad"]],
        save=max(rank["save"] for rank in ranks),
        own_results=sorted((one for rank in ranks for one in rank["own_results"]), key=lambda one: one[0]),
        losses=[column for _, column in sorted(pair for rank in ranks for pair in rank["losses"])],
    )


def step_rows(
    schedule: RoundSchedule,
    rates: Sequence[float],
    clients: Tensor,
    steps: Tensor | None,
    losses: Sequence[list[float]],
) -> Iterator[tuple[int, int, float, float]]:
    """Yield (step, client, rate, loss) of every local step of a round, step after step.

    Args:
        schedule: The round.
        rates: The rate of each step.
        clients: int64 [clients].
        steps: int64 [clients], steps of each client; None: all.
        losses: Those of a RoundSync.
    """
    counts = [schedule.local_steps] * len(clients) if steps is None else steps.tolist()
    rows = list(zip(clients.tolist(), counts, losses, strict=True))
    for step in range(schedule.local_steps):
        for client, count, own in rows:
            if step < count:
                yield schedule.first_step + step, client, rates[step], own[step]
