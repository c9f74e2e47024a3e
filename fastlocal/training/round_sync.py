"""What the ranks of a run tell each other when their clients have ended a round."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..distributed.world import World
from ..schedule.cursor import PartialRound, TrainStats


@dataclass(frozen=True)
class RoundSync:
    """A round of all clients.

    stats: sums over them        bad: (step, client, what) that is no longer finite
    save: number of the last save that a rank began or was asked for
    losses: [clients][local_steps] where every step is logged, else empty
    """

    stats: TrainStats
    bad: list[tuple[int, int, str]]
    save: int
    losses: list[list[float]]


def sync_round(world: World, what: str, so_far: PartialRound, save: int, *, losses: bool) -> RoundSync:
    """Wait for every rank to end its clients' round.

    what: for a person, which round        so_far: this rank's part        losses: whether they are wanted
    """
    own = {
        "stats": asdict(so_far.stats),
        "bad": so_far.bad,
        "save": save,
        "losses": [
            (first, column)
            for (first, _), chunk in zip(so_far.done, so_far.losses, strict=True)
            for first, column in enumerate(chunk.t().tolist(), first)
        ]
        if losses
        else [],
    }
    told = world.all_gather_object(own, what)
    stats = TrainStats()
    for one in told:
        stats.add(TrainStats(**one["stats"]))
    return RoundSync(
        stats=stats,
        bad=[(step, client, text) for one in told for step, client, text in one["bad"]],
        save=max(one["save"] for one in told),
        losses=[column for _, column in sorted(pair for one in told for pair in one["losses"])],
    )
