"""Train a prepared run in its directory, or resume it there."""

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
from ..models.own_functions import rebind_functions
from ..models.own_tensors import OwnTensors, tensors_of
from ..models.python_state import preserve_state
from ..params.client_stack import MOMENTUM, ClientStore
from ..telemetry.base import Logger, Loggers, RunSummary
from ..telemetry.jsonl import JsonlLogger, StepLog, read_rows
from ..telemetry.rank_messages import RankMessages
from ..training.evaluation import Evaluation, RandomContext, evaluate
from ..training.evaluator import Evaluator
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
    clients = world.local_clients(config.clients)
    chunk = min(config.machine.chunk, len(clients))
    global_model = _global_model(prepared)
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
    make_aggregator = functools.partial(
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
        start = {MOMENTUM: torch.zeros_like(global_model.flat_params), **start}
    return Loop(
        world=world,
        progress=prepared.progress,
        planner=Planner(prepared.progress, streams, clients, chunk, dtype, device, problem.source.index_device),
        source=problem.source,
        problem=problem,
        executor=prepared.executor,
        global_model=global_model,
        aggregator=make_aggregator(global_model.flat_params, wire_format=config.machine.wire_format),
        client_store=ClientStore(clients, start, chunk, device),
        mean_state=BufferMean(problem.state, dtype, world, make_aggregator) if problem.state else None,
        evaluator=Evaluator(
            global_model=global_model,
            source=problem.source,
            streams=streams,
            evaluate=lambda random_context: _evaluate(prepared, global_model.module, random_context),
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


def _global_model(prepared: PreparedRun) -> GlobalModel:
    problem = prepared.problem
    if prepared.user_module is not None:
        rebind_functions(prepared.module, prepared.user_module)
    return GlobalModel(
        prepared.module, prepared.layout, problem.numerics, prepared.modes, problem.state, prepared.needs_gradients
    )


def _evaluate(prepared: PreparedRun, module: nn.Module, random_context: RandomContext) -> Evaluation:
    problem = prepared.problem
    own = OwnTensors(problem.tensor_names, tensors_of(module)) if problem.tensor_names else nullcontext()
    mirror = Mirror(module, problem.user_module, problem.recomputed)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        with mirror.expose():
            return problem.loss(outputs, targets)

    module.eval()
    shown = in_modes(prepared.user_module, modes_of(module))
    with preserve_state(problem.loss) if prepared.stateful_loss else nullcontext(), own, shown:
        return evaluate(
            module,
            prepared.test,
            loss=loss if problem.user_module is not None else problem.loss,
            topk=problem.topk,
            numerics=problem.numerics,
            gradients=prepared.needs_gradients,
            world=prepared.world,
            random_context=random_context,
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
    """Train to the end, in a new or an existing run directory.

    Args:
        prepared: The run.
        overwrite: Whether to start afresh in a directory that holds a run.
        sinks: Makes the loggers other than metrics.jsonl, from the run directory.
        resume: Whether to continue from the state saved in the directory; without a saved state the run starts over.
        eval_every: Rounds between evaluations that a profile assumes; None for those of the run.
        words: Rewrites flag names in messages.

    Returns:
        The finished loop.

    Raises:
        KeyboardInterrupt: A signal came; the state is saved unless it is a StoppedUnsaved.
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
            shapes = {name: value.shape for name, value in _global_model(prepared).tensors().items()}
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
                # leave the user a model if no evaluation wrote one, or if no state is saved
                loop.evaluator.save_latest(loop.cursor.steps_done)
            raise
        except RankMissing as missing:
            if not requested_for(0):
                raise
            world.stopped = True  # the other ranks have ended, so that none can be asked to stop
            raise StoppedUnsaved(str(missing)) from missing
        return loop


def _see_directory(directory: Path, world: World) -> None:
    """Wait for the run directory; raise UsageError on a node that does not share it with the first node."""
    world.all_gather_object(None, "the run directory")
    if not (directory / "config.json").exists():
        raise UsageError(f"--log-pth {directory}: is not the first node's; give a folder that all nodes share")
    world.all_gather_object(None, "the run directory")


def _save_start(prepared: PreparedRun, directory: Path) -> None:
    """Write the start weights if they were drawn from the seed."""
    if prepared.config.model.resume_pth is None:
        schedule = prepared.config.schedule
        name = f"H={schedule.step1}-{schedule.step2}-{schedule.step3}_init.pt"
        save_model(directory / name, prepared.module.state_dict())


def _restore(loop: Loop, state: State) -> None:
    restore_snapshot(loop, state)
    residual = state.tensors.get(f"feedback {FEEDBACK}")
    if residual is not None:  # resharding adds it up if the number of processes has changed
        loop.aggregator.load_residual(residual)
    loop.history.extend(read_rows(loop.directory / "metrics.jsonl", state.metadata["logged"]["metrics.jsonl"]))
    if not loop.history and loop.evaluator.writes:
        (loop.directory / "latest.pt").unlink(missing_ok=True)  # written at an interruption, or after `state`


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
    """Return the plain module with the averaged weights, in evaluation mode."""
    loop.evaluator.load_global_model(loop.cursor.steps_done)
    module = loop.global_model.module
    module.eval()
    return module
