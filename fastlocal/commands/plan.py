"""fastlocal plan: the memory of a run before its start; and the plan that --dry-run prints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from ..common.interrupts import defer_signals
from ..config.validation import check
from ..distributed.ranks import LaunchInfo
from .flags import parse

if TYPE_CHECKING:
    from ..config.schema import RunConfig
    from ..runs.build import PreparedRun
    from ..schedule.rounds import Progress

MAX_CHANGES = 8
"""Changes of H that a plan shows."""


def run(argv: Sequence[str]) -> int:
    """Print the bytes of each part at the peak, and the largest chunk that fits --memory-limit."""
    flags, ranks = parse(argv, "fastlocal plan"), LaunchInfo.from_environment()
    check(flags.run)

    with defer_signals():
        from ..distributed.world import connect
        from ..runs.from_config import run_from_config
        from ..runs.resolve import resolve_device

    machine = flags.run.machine
    device = resolve_device(machine.device, ranks)
    with connect(ranks, url=machine.dist_url, timeout=machine.timeout, device=device) as world:
        prepared = run_from_config(flags.run, lambda text: print(text, file=sys.stderr), dry_run=True, world=world)
        with closing(prepared):
            if world.is_rank0:
                _print(prepared)
    return 0


def _print(prepared: PreparedRun) -> None:
    config = prepared.config
    print(
        f"{config.clients} clients of {config.model.model} ({prepared.layout.n_params:,} parameters), batch "
        f"{config.client.batch_size}, {config.machine.precision}, {config.machine.executor} on {config.machine.device}"
    )
    if _changes_h(prepared.progress):
        print(f"H from step {_changes(prepared.progress)}")
    print(prepared.memory.table())
    for line in _store_lines(prepared):
        print(f"{'client store':<16}{line}")
    for note in prepared.notes:
        print(note)


def plan_text(prepared: PreparedRun) -> str:
    """Format the resolved plan: clients, H per phase, rounds, decay rounds, rates and memory."""
    config, progress, data = prepared.config, prepared.progress, prepared.data
    schedule = config.schedule
    rows = [
        ("model", f"{config.model.model}, {prepared.layout.n_params:,} trained parameters"),
        ("data", f"{config.data.dataset}, {len(data.train)} training and {len(data.test)} test samples"),
        ("clients", f"{_of(config)}, {config.machine.chunk} resident at once"),
        ("batch", f"{config.client.batch_size} per client, {config.client.total_batch_size} in all"),
    ]
    rate = f"{progress.warm_up.start:g}"
    if config.owned:
        rows += [("samples", f"by --partition {config.client.partition}"), ("H", _steps(prepared))]
        rows += [("rounds", str(schedule.rounds)), ("rate", f"{rate}, {schedule.lr_schedule}")]
    else:
        rows += _phase_rows(config, progress, rate)
    if config.sgd.client_optimizer != "sgd":
        rows.append(("clients' steps", config.sgd.client_optimizer))
    if config.algorithm.algorithm != "fedavg":
        settings = {name: value for name, value in vars(config.algorithm).items() if value is not None}
        name = settings.pop("algorithm")
        own = [f"--{key.replace('_', '-')} {value}" for key, value in settings.items()]
        rows.append(("algorithm", " ".join([name, *own])))
    if config.schedule.sync_fragments > 1:
        rows.append(("fragments", f"{config.schedule.sync_fragments}, one averaged in each round"))
    if config.server.server_optimizer != "none":
        rows.append(("server", config.server.server_optimizer))
    rows.append(("computed", f"{config.machine.executor} on {config.machine.device} in {config.machine.precision}"))
    memory = prepared.memory
    for what, size in memory.needs.parts(memory.chunk).items():
        if size:
            rows.append(("memory", f"{size / 2**20:,.1f} MiB {what}"))
    rows.append(("memory", f"{memory.needs.total(memory.chunk) / 2**20:,.1f} MiB in all at the peak"))
    rows += [("client store", line) for line in _store_lines(prepared)]
    rows += [("note", line) for line in prepared.notes]
    return "\n".join(f"{name:<14}{value}" for name, value in rows)


def _store_lines(prepared: PreparedRun) -> list[str]:
    """Return a line about the state that clients keep, or none if they keep none."""
    from ..runs.store_plan import plan_store

    store = plan_store(prepared.config, prepared.problem)
    return [] if store is None else [store.line()]


def _steps(prepared: PreparedRun) -> str:
    """Return the local steps of a round, or their range and mean over the clients that take part."""
    population = prepared.population
    steps = population.work.steps[population.work.steps > 0]
    if population.work.equal:
        return str(population.work.most)
    return f"{int(steps.min())} to {int(steps.max())} by client, {population.mean_steps} in the mean"


def _of(config: RunConfig) -> str:
    """Return the number of clients, or of those of a round and of all."""
    population = config.client.population
    return str(config.clients) if population is None else f"{config.clients} of {population} in each round"


def _phase_rows(config: RunConfig, progress: Progress, rate: str) -> list[tuple[str, str]]:
    """Return the lines about epochs and phases."""
    from ..schedule.phases import decay_rounds

    schedule = progress.schedule
    rows = [("steps", f"{progress.total_steps} local steps, {progress.steps_per_epoch} per epoch")]
    if schedule.sync == "qsr":
        rows.append(("H", f"max({schedule.h_min}, floor(({schedule.qsr_alpha:g} / rate)^2))"))
    else:
        rows.append(("H per phase", f"{schedule.step1}, {schedule.step2}, {schedule.step3}"))
    if _changes_h(progress):
        rows.append(("H from step", _changes(progress)))
    rows.append(("rounds", _rounds(progress)))
    what = "decay" if schedule.lr_schedule == "constant" else "phase"
    if progress.by_epochs:
        rows.append((f"{what} epochs", f"{schedule.decay1}, {schedule.decay2}, {schedule.decay3}"))
    elif schedule.sync == "qsr":
        rows.append((f"{what} epochs", f"{schedule.decay1}, {schedule.decay2}"))
    else:
        decays, end = decay_rounds(schedule, progress.steps_per_epoch), progress.count()
        ends = ", ".join(str(at) if at <= end else f"{at} (after the end)" for at in decays)
        rows.append((f"{what} rounds", ends))
    if progress.warm_up.steps:
        rate += f" to {progress.warm_up.peak:g} over {progress.warm_up.steps} steps"
    decay = f"x {config.sgd.gamma:g} at each decay" if what == "decay" else f"then {schedule.lr_schedule}"
    return [*rows, ("rate", f"{rate}, {decay}")]


def _changes_h(progress: Progress) -> bool:
    """Return True if H changes within phases."""
    return progress.schedule.sync == "qsr" or progress.post_local_steps > 0


def _changes(progress: Progress) -> str:
    """Format H over the run: the steps from which on rounds have another H, at most MAX_CHANGES of them."""
    changes: list[tuple[int, int]] = []
    for planned in progress.rounds():
        if not changes or changes[-1][1] != planned.local_steps:
            changes.append((planned.first_step, planned.local_steps))
    kept = min(len(changes), MAX_CHANGES)
    shown = [changes[place * (len(changes) - 1) // max(kept - 1, 1)] for place in range(kept)]
    text = ", ".join(f"{step}: {local_steps}" for step, local_steps in shown)
    return text if kept == len(changes) else f"{text} ({kept} of {len(changes)} changes)"


def _rounds(progress: Progress) -> str:
    """Format the number of averages, and of the steps after the last one."""
    if not progress.leftover:
        return str(progress.count())
    return f"{progress.count() - 1}, then {progress.leftover} local steps that are not averaged"
