"""Train a prepared run in its directory, or resume it there."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..aggregation.averager import FEEDBACK
from ..checkpoint.lock import hold_lock
from ..checkpoint.model_file import save_model
from ..checkpoint.restore import check_state, find_state, is_complete
from ..checkpoint.run_directory import check_directory, create_directory, make_directory, reopen_directory
from ..checkpoint.state_file import State
from ..common.errors import RankMissing, StoppedUnsaved, UsageError
from ..common.interrupts import defer_signals, requested_for
from ..config.schema import RunConfig
from ..config.targets import Target
from ..distributed.world import World
from ..telemetry.base import Logger, Loggers, RunSummary
from ..telemetry.jsonl import ClientLog, JsonlLogger, StepLog, read_rows
from ..telemetry.rank_messages import RankMessages
from ..training.algorithm_checks import refuse_another
from ..training.driver import train_loop
from ..training.loop import Loop
from ..training.snapshot import restore_snapshot
from .build import PreparedRun
from .build_loop import build_loop, make_global_model
from .profile import profiler


@dataclass(frozen=True)
class OpenRun:
    """A run whose directory is open.

    Attributes:
        loop: Its training loop.
        complete: Whether it is trained to its end already.
        eval_on_start: Whether the start weights are evaluated first.
    """

    loop: Loop
    complete: bool
    eval_on_start: bool

    def interrupt(self) -> None:
        """Save after a KeyboardInterrupt, and leave the user a model."""
        loop = self.loop
        loop.stop()
        if loop.world.is_rank0 and not (loop.history and loop.saver.enabled):
            # leave the user a model if no evaluation wrote one, or if no state is saved
            loop.evaluator.save_latest(loop.cursor.steps_done)


@defer_signals()
def train(
    prepared: PreparedRun,
    *,
    overwrite: bool,
    make_loggers: Callable[[Path], Sequence[Logger]],
    resume: bool = False,
    eval_every: int | None = None,
    words: Callable[[str], str] = str,
) -> Loop:
    """Train to the end, in a new or an existing run directory; see open_run.

    Returns:
        The finished loop.

    Raises:
        KeyboardInterrupt: A signal came; the state is saved unless it is a StoppedUnsaved.
    """
    with open_run(
        prepared, overwrite=overwrite, make_loggers=make_loggers, resume=resume, eval_every=eval_every, words=words
    ) as run:
        if not run.complete:
            with unsaved_without_ranks(prepared.world):
                try:
                    train_loop(run.loop, eval_on_start=run.eval_on_start)
                except KeyboardInterrupt:
                    run.interrupt()
                    raise
        return run.loop


@contextlib.contextmanager
def unsaved_without_ranks(world: World) -> Iterator[None]:
    """Raise StoppedUnsaved for a rank that is missing after a signal."""
    try:
        yield
    except RankMissing as missing:
        if not requested_for(0):
            raise
        world.stopped = True  # the other ranks have ended, so that none can be asked to stop
        raise StoppedUnsaved(str(missing)) from missing


@contextlib.contextmanager
def open_run(
    prepared: PreparedRun,
    *,
    overwrite: bool,
    make_loggers: Callable[[Path], Sequence[Logger]],
    resume: bool = False,
    eval_every: int | None = None,
    words: Callable[[str], str] = str,
) -> Iterator[OpenRun]:
    """Open the directory of a run, a new or an existing one, and build its loop; at the end close its files.

    Args:
        prepared: The run.
        overwrite: Whether to start afresh in a directory that holds a run.
        make_loggers: Makes the loggers other than metrics.jsonl, from the run directory.
        resume: Whether to continue from the state saved in the directory; without a saved state the run starts over.
        eval_every: Rounds between evaluations that a profile assumes; None for those of the run.
        words: Rewrites flag names in messages.
    """
    config, world = prepared.config, prepared.world
    assert config.log.log_pth is not None
    directory = Path(config.log.log_pth)
    if world.is_rank0:
        check_directory(directory, overwrite or resume)
    others = Loggers(make_loggers(directory) if world.is_rank0 else [RankMessages(world.rank)], words)
    with ExitStack() as closing:
        closing.callback(others.close)
        if world.is_rank0:
            make_directory(directory)
            closing.enter_context(hold_lock(directory))
        state = find_state(directory, others.message, world) if resume else None
        logged: dict[str, Any] = {}
        if state is None:
            if world.is_rank0:
                create_directory(directory, config, world.launch_ids)
                prepared.population.save(directory)
        else:
            shapes = {name: value.shape for name, value in make_global_model(prepared).tensors().items()}
            check_state(state, config, prepared.progress, shapes)
            refuse_another(state.metadata.get("algorithm"), prepared.algorithm, prepared.problem.algorithm)
            reached = _target_reached(config, state, directory)
            if reached is not None or is_complete(state, prepared.progress):
                loop = build_loop(prepared, others, None)
                _restore(loop, state)
                if world.is_rank0:
                    why = "--rounds or --epochs extends it" if reached is None else reached
                    others.message(f"the run is complete after {loop.comm_round} rounds; {why}")
                yield OpenRun(loop, complete=True, eval_on_start=False)
                return
            logged = state.metadata["logged"]
            if world.is_rank0:
                reopen_directory(directory, config, world.launch_ids, state.metadata.get("client_store"))
        _see_directory(directory, world)
        logger, steps = others, None
        if world.is_rank0:
            lines: list[Logger] = [JsonlLogger(directory, logged.get("metrics.jsonl", 0))]
            if config.client.eval_clients is not None:
                lines.append(ClientLog(directory, logged.get("clients.jsonl", 0)))
            for file in lines:
                closing.callback(file.close)
            logger = Loggers([*lines, others])
            steps = StepLog(directory, logged.get("steps.jsonl", 0)) if config.log.debug else None
        if config.log.profile:
            watch = profiler(config, prepared.problem, directory, others.message, eval_every)
            closing.callback(watch.close)
            logger.loggers.append(watch)
        loop = build_loop(prepared, logger, steps)
        closing.callback(loop.client_store.close)
        closing.callback(loop.saver.close)
        if state is not None:
            logger.restore(logged)
            _restore(loop, state)
        elif world.is_rank0:
            _save_start(prepared, directory)
        if world.is_rank0 and state is not None:
            logger.message(f"going on after {loop.comm_round} rounds")
        logger.start(_summary(prepared, directory, loop.cursor.first_step))
        for note in prepared.notes:
            logger.message(note)
        yield OpenRun(loop, complete=False, eval_on_start=config.schedule.eval_on_start)


def _see_directory(directory: Path, world: World) -> None:
    """Wait for the run directory; raise UsageError on a node that does not share it with the first node."""
    world.all_gather_object(None, "the run directory")
    if not (directory / "config.json").exists():
        raise UsageError(f"--log-pth {directory}: is not the first node's; give a folder that all nodes share")
    world.all_gather_object(None, "the run directory")


def _target_reached(config: RunConfig, state: State, directory: Path) -> str | None:
    """Return a log line about --stop-at if a saved evaluation reaches it; else None."""
    if config.schedule.stop_at is None:
        return None
    row = Target.parse(config.schedule.stop_at).first(_saved_rows(state, directory))
    if row is None:
        return None
    return f"--stop-at {config.schedule.stop_at} was reached in round {row['comm_round']}; another value extends it"


def _saved_rows(state: State, directory: Path) -> list[dict[str, Any]]:
    return read_rows(directory / "metrics.jsonl", state.metadata["logged"]["metrics.jsonl"])


def _save_start(prepared: PreparedRun, directory: Path) -> None:
    """Write the start weights if they were drawn from the seed."""
    if prepared.config.model.resume_pth is None:
        save_model(directory / f"{prepared.progress.label}_init.pt", prepared.module.state_dict())


def _restore(loop: Loop, state: State) -> None:
    restore_snapshot(loop, state)
    for part in loop.server.fragments.parts:
        residual = state.tensors.get(f"feedback {part.prefix}{FEEDBACK}")
        if residual is not None:  # resharding adds it up if the number of processes has changed
            part.aggregator.load_residual(residual)
    loop.history.extend(_saved_rows(state, loop.directory))
    if not loop.history and loop.evaluator.writes:
        (loop.directory / "latest.pt").unlink(missing_ok=True)  # written at an interruption, or after `state`


def _summary(prepared: PreparedRun, directory: Path, steps_done: int) -> RunSummary:
    config, population = prepared.config, prepared.population
    per_step = config.client.total_batch_size * population.busy_share
    return RunSummary(
        name=config.name,
        directory=directory,
        config=dataclasses.asdict(config),
        clients=config.clients,
        rounds=prepared.progress.count(),
        samples=round(prepared.progress.total_steps * per_step),
        samples_done=round(steps_done * per_step),
    )


def final_model(loop: Loop) -> nn.Module:
    """Return the plain module with the averaged weights, in evaluation mode."""
    loop.evaluator.load_global_model(loop.cursor.steps_done)
    module = loop.global_model.module
    module.eval()
    return module
