"""A prepared run in its directory: its loop put together, trained to the end, or gone on with."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..aggregation.averager import FEEDBACK, make_averager
from ..aggregation.buffer_mean import BufferMean
from ..aggregation.global_model import GlobalModel
from ..checkpoint.distributed_saver import make_saver
from ..checkpoint.lock import hold_lock
from ..checkpoint.model_file import save_model
from ..checkpoint.restore import check_state, find_state, is_complete
from ..checkpoint.run_directory import check_directory, create_directory, make_directory, reopen_directory
from ..checkpoint.state_file import State
from ..common.errors import RankMissing, StoppedUnsaved, UsageError
from ..common.interrupts import defer_signals, requested_for
from ..data.sample_streams import Streams, StreamSpec
from ..distributed.world import World
from ..models.mirror import Mirror
from ..models.modes import in_modes, modes_of
from ..models.own_functions import own_functions
from ..models.own_tensors import OwnTensors, tensors_of
from ..models.python_state import kept
from ..params.client_stack import MOMENTUM, ClientStore
from ..telemetry.base import Logger, Loggers, RunSummary
from ..telemetry.jsonl import JsonlLogger, StepLog, read_rows
from ..telemetry.rank_messages import RankMessages
from ..training.evaluation import Drawing, Evaluation, evaluate
from ..training.evaluator import Reports
from ..training.loop import Loop
from ..training.planner import Planner
from ..training.snapshot import restore_snapshot
from .build import PreparedRun
from .profile import profiler
from .resolve import sample_pages


def _build_loop(prepared: PreparedRun, logger: Logger, steps: StepLog | None) -> Loop:
    config, problem, world = prepared.config, prepared.problem, prepared.world
    assert config.machine.chunk is not None and config.log.log_pth is not None
    directory = Path(config.log.log_pth)
    mine = world.local_clients(config.clients)
    chunk = min(config.machine.chunk, len(mine))
    averaged = _averaged(prepared)
    dtype, device = problem.numerics.dtype, problem.numerics.device
    spec = StreamSpec(
        samples=len(problem.source),
        clients=config.clients,
        batch_size=config.client.batch_size,
        steps_per_epoch=prepared.progress.steps_per_epoch,
        replacement=config.client.replacement,
        seed=config.machine.seed,
    )
    streams = Streams(spec, sample_pages(config, prepared.data))
    make = functools.partial(
        make_averager,
        clients=config.clients,
        nodes=world.nodes,
        rank=world.rank,
        bucket_mb=config.machine.bucket_mb,
        reduce_order=config.machine.reduce_order,
        timeout=world.group_timeout,
    )
    start = dict(problem.state)
    if config.sgd.momentum:
        start = {MOMENTUM: torch.zeros_like(averaged.flat_params), **start}
    return Loop(
        world=world,
        progress=prepared.progress,
        planner=Planner(prepared.progress, streams, mine, chunk, dtype, device, problem.source.index_device),
        source=problem.source,
        problem=problem,
        executor=prepared.executor,
        averaged=averaged,
        averager=make(averaged.flat_params, wire_format=config.machine.wire_format),
        kept=ClientStore(mine, start, chunk, device),
        mean_state=BufferMean(problem.state, dtype, world, make) if problem.state else None,
        reports=Reports(
            averaged=averaged,
            source=problem.source,
            streams=streams,
            evaluate=lambda drawing: _evaluate(prepared, averaged.module, drawing),
            logger=logger,
            directory=directory,
            bn_batches=config.model.bn_batches,
            topk=problem.topk,
            stop_on_nan=config.machine.on_nan == "stop",
            module_seed=config.machine.seed if prepared.uses_rng else None,
            draws_seed=config.machine.seed if problem.draws else None,
            writes=world.is_rank0,
        ),
        logger=logger,
        steps=steps,
        log_steps=config.log.debug,
        saver=make_saver(
            directory,
            every=config.log.save_every,
            minutes=config.log.save_minutes,
            keep=config.log.keep,
            sync=(lambda: None) if steps is None else steps.sync,
            world=world,
        ),
        config=dataclasses.asdict(config),
        grace=config.log.grace,
    )


def _averaged(prepared: PreparedRun) -> GlobalModel:
    problem = prepared.problem
    if prepared.user_module is not None:
        own_functions(prepared.module, prepared.user_module)
    return GlobalModel(
        prepared.module, prepared.layout, problem.numerics, prepared.modes, problem.state, prepared.needs_gradients
    )


def _evaluate(prepared: PreparedRun, module: nn.Module, drawing: Drawing) -> Evaluation:
    problem = prepared.problem
    own = OwnTensors(problem.held, tensors_of(module)) if problem.held else nullcontext()
    mirror = Mirror(module, problem.user_module, problem.recomputed)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        with mirror.shown():
            return problem.loss(outputs, targets)

    module.eval()
    shown = in_modes(prepared.user_module, modes_of(module))
    with kept(problem.loss) if prepared.remembers else nullcontext(), own, shown:
        return evaluate(
            module,
            prepared.test,
            loss=loss if problem.user_module is not None else problem.loss,
            topk=problem.topk,
            numerics=problem.numerics,
            gradients=prepared.needs_gradients,
            world=prepared.world,
            drawing=drawing,
        )


@defer_signals()
def train(
    prepared: PreparedRun,
    *,
    overwrite: bool,
    sinks: Callable[[Path], Sequence[Logger]],
    resume: bool = False,
    eval_every: int | None = None,
    words: Callable[[str], str] = str,
) -> Loop:
    """Train to the end, in a new run directory or going on in one.

    sinks: makes the loggers beside metrics.jsonl, given the run directory
    resume: go on from the last state that was saved there; start over where there is none
    eval_every: rounds between evaluations that a profile reckons with, where they are not those of the run
    words: how messages are said, which name flags
    Returns the finished loop. On KeyboardInterrupt what was reached is saved, unless it is a StoppedUnsaved.
    """
    config, world = prepared.config, prepared.world
    assert config.log.log_pth is not None
    directory = Path(config.log.log_pth)
    if world.is_rank0:
        check_directory(directory, overwrite or resume)
    others = Loggers(sinks(directory) if world.is_rank0 else [RankMessages(world.rank)], words)
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
        else:
            shapes = {name: value.shape for name, value in _averaged(prepared).tensors().items()}
            check_state(state, config, prepared.progress, shapes)
            if is_complete(state, prepared.progress):
                loop = _build_loop(prepared, others, None)
                _restore(loop, state)
                if world.is_rank0:
                    others.message(
                        f"the run is complete after {loop.comm_round} rounds; --rounds or --epochs extends it"
                    )
                return loop
            logged = state.metadata["logged"]
            if world.is_rank0:
                reopen_directory(directory, config, world.launch_ids)
        _see_directory(directory, world)
        logger, steps = others, None
        if world.is_rank0:
            lines = JsonlLogger(directory, logged.get("metrics.jsonl", 0))
            closing.callback(lines.close)
            logger = Loggers([lines, others])
            steps = StepLog(directory, logged.get("steps.jsonl", 0)) if config.log.debug else None
        if config.log.profile:
            watch = profiler(config, prepared.problem, directory, others.message, eval_every)
            closing.callback(watch.close)
            logger.sinks.append(watch)
        loop = _build_loop(prepared, logger, steps)
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
        try:
            loop.run(config.schedule.eval_on_start)
        except KeyboardInterrupt:
            if world.is_rank0 and not (loop.history and loop.saver.enabled):
                loop.reports.save_latest(loop.cursor.steps_done)  # a model to look at, where no evaluation has left one
            raise
        except RankMissing as missing:
            if not requested_for(0):
                raise
            world.stopped = True  # and has nobody left to ask
            raise StoppedUnsaved(str(missing)) from missing
        return loop


def _see_directory(directory: Path, world: World) -> None:
    """Wait until the run directory is there; raises UsageError on a node that does not share it with the first."""
    world.all_gather_object(None, "the run directory")
    if not (directory / "config.json").exists():
        raise UsageError(f"--log-pth {directory}: is not the first node's; give a folder that all nodes share")
    world.all_gather_object(None, "the run directory")


def _save_start(prepared: PreparedRun, directory: Path) -> None:
    """Write the start weights, where they were drawn from the seed."""
    if prepared.config.model.resume_pth is None:
        schedule = prepared.config.schedule
        name = f"H={schedule.step1}-{schedule.step2}-{schedule.step3}_init.pt"
        save_model(directory / name, prepared.module.state_dict())


def _restore(loop: Loop, state: State) -> None:
    restore_snapshot(loop, state)
    owed = state.tensors.get(f"feedback {FEEDBACK}")
    if owed is not None:  # by as many processes as it was saved from, or by this one for them
        loop.averager.load_residual(owed)
    loop.history.extend(read_rows(loop.directory / "metrics.jsonl", state.metadata["logged"]["metrics.jsonl"]))
    if not loop.history and loop.reports.writes:
        (loop.directory / "latest.pt").unlink(missing_ok=True)  # written as the run stopped, or later than `state`


def _summary(prepared: PreparedRun, directory: Path, steps_done: int) -> RunSummary:
    config = prepared.config
    return RunSummary(
        name=config.name,
        directory=directory,
        config=dataclasses.asdict(config),
        clients=config.clients,
        rounds=prepared.progress.count(),
        samples=prepared.progress.total_steps * config.client.total_batch_size,
        samples_done=steps_done * config.client.total_batch_size,
    )


def final_model(loop: Loop) -> nn.Module:
    """The plain module with the averaged weights, in evaluation mode."""
    loop.reports.load_averaged(loop.cursor.steps_done)
    module = loop.averaged.module
    module.eval()
    return module
