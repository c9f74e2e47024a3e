"""Train the runs of a sweep, group by group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

from ..common.interrupts import defer_signals
from ..distributed.world import World
from ..runs.replicas import program_key
from ..telemetry.jsonl import read_rows
from .directory import ENDED, SweepDirectory
from .group import Builder, Group, Watcher
from .halving import Halving
from .plan import SweepRun


def group_runs(runs: Sequence[SweepRun]) -> list[list[SweepRun]]:
    """Return the runs in groups of one program, in the order of their first runs."""
    groups: dict[object, list[SweepRun]] = {}
    for run in runs:
        groups.setdefault(program_key(run.config), []).append(run)
    return list(groups.values())


@defer_signals()
def train_sweep(
    runs: Sequence[SweepRun],
    builder: Builder,
    directory: SweepDirectory,
    world: World,
    watcher: Watcher,
    *,
    halving: Halving | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train all runs that have not ended.

    Args:
        runs: The runs.
        builder: Builds them.
        directory: Directory of the sweep.
        world: The processes.
        watcher: Is told what happens.
        halving: When runs stop early, or None.
        resume: Whether runs go on from the state in their directories.
        overwrite: Whether runs start afresh in directories that hold runs.

    Raises:
        KeyboardInterrupt: A signal came; what trained is saved.
    """
    def alive(group: Sequence[SweepRun]) -> list[SweepRun]:
        return [run for run in group if directory.states[run.name].status not in ENDED]

    waiting = [group for group in group_runs(runs) if alive(group)]

    def open_group(place: int) -> Group:
        group = Group(waiting[place], builder, directory, world, watcher, resume=resume, overwrite=overwrite)
        if not directory.begun:  # after what may refuse the settings
            directory.begin()
        watcher.message(_plan_line(group, place, len(waiting)))
        return group

    if halving is None:
        for place in range(len(waiting)):
            with closing(open_group(place)) as group:
                group.train([run.name for run in group.runs], None)
        return
    with ExitStack() as opened:
        groups = [opened.enter_context(closing(open_group(place))) for place in range(len(waiting))]
        for number in halving.rounds():
            if number <= directory.decided:
                continue
            _train(groups, alive, number)
            left = alive(runs)
            results = {run.name: _result(directory, run, halving.metric, number) for run in left}
            losers = world.all_gather_object(halving.losers(left, results, number), "the choice of runs")[0]
            directory.stop_early(losers, number)
            for name in losers:
                watcher.message(f"{name} stops {losers[name]}")
            if not losers:
                break
        _train(groups, alive, None)


def _train(groups: Sequence[Group], alive: Callable[[Sequence[SweepRun]], list[SweepRun]], until: int | None) -> None:
    for group in groups:
        group.train([run.name for run in alive(group.runs)], until)


def _result(directory: SweepDirectory, run: SweepRun, metric: str, number: int) -> float | None:
    """Return the metric of the last evaluation up to a round, or None."""
    path = directory.path / run.name / "metrics.jsonl"
    found = read_rows(path, path.stat().st_size) if path.exists() else []
    rows = [row for row in found if row["comm_round"] <= number]
    value = rows[-1].get(metric) if rows else None
    return float(value) if isinstance(value, int | float) else None


def _plan_line(group: Group, place: int, count: int) -> str:
    """Describe a group: its runs, rows and memory."""
    base, runs = group.base, len(group.runs)
    config, memory = base.config, base.memory
    size = memory.needs.total(memory.chunk) / 2**20
    together = f"{group.at_once} at once" if group.at_once > 1 else "one after the other"
    rows = group.at_once * config.clients
    return (
        f"group {place + 1} of {count}: {runs} runs of {config.clients} clients, {together} ({rows} rows), "
        f"{config.machine.executor} on {config.machine.device}; one run takes {size:,.0f} MiB at the peak"
    )
