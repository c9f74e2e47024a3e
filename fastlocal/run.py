"""The composition root: every part of a run, built from a RunConfig."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .averaged import AveragedModel
from .batchnorm import has_batchnorm
from .checkpoint import save_model
from .choosing import choose_executor
from .config import RunConfig
from .data.sources import Reading, make_source
from .data.sources.base import Source
from .data.streams import Streams, StreamSpec
from .data.types import DataSet
from .directory import check_directory, create_directory, make_directory, reopen_directory
from .errors import UsageError
from .evaluation import evaluate
from .executors.base import Executor, LabelNoise, LocalProblem
from .interrupts import held_back
from .layout import ParamLayout, param_layout
from .local_module import local_module
from .lock import locked
from .loop import Loop
from .losses import Loss, cross_entropy
from .memory import MemoryPlan, plan_memory, resolve_chunk
from .precision import Numerics, numerics
from .probe import Probe, probe, try_evaluation
from .profiled import profiler
from .progress import Progress
from .resolve import resolve_device, resolve_for_data, resolve_for_machine, sample_pages
from .resume import check_state, find_state, is_complete
from .saving import Saver
from .stack import MomentumStore
from .state_file import State
from .telemetry.base import Logger, Loggers, RunSummary
from .telemetry.jsonl import JsonlLogger, StepLog, read_rows
from .trying import try_executor

PROBE_BATCH = 8


@dataclass(frozen=True)
class Prepared:
    """A run that can start: everything is checked and nothing is written yet.

    config: fully resolved        notes: lines that a person should see before the first round
    """

    config: RunConfig
    data: DataSet
    module: nn.Module
    layout: ParamLayout
    problem: LocalProblem
    executor: Executor
    test: Source
    progress: Progress
    memory: MemoryPlan
    random: bool
    notes: tuple[str, ...]


def prepare(
    config: RunConfig, data: DataSet, make_module: Callable[[], nn.Module], loss: Loss, *, model_flag: str
) -> Prepared:
    """Resolve `config` against the data, the model and the machine, and build what trains.

    config: checked by checks.check        make_module: the plain module, its start weights loaded
    Raises UsageError for what cannot work; touches no disk.
    """
    device = resolve_device(config.machine.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # Triton launches on the current device, wherever its tensors are
    config, data = resolve_for_data(config, data, device)
    assert config.machine.precision is not None, "resolved just now"
    numbers = numerics(config.machine.precision, device, repeatable=config.machine.deterministic)
    module = make_module().to(device, numbers.dtype)
    config = _resolve_batchnorm(config, module)
    layout = param_layout(module, group_weight=config.sgd.group_weight)
    if layout.n_params == 0:
        raise UsageError(f"{model_flag}: has no parameter that requires a gradient")
    source, test = _sources(config, data, numbers)
    local = local_module(module)
    sample = source.rows(0, min(PROBE_BATCH, config.client.batch_size))
    labels = _label_range(data, loss)
    seen = probe(local, layout, loss, sample.inputs, sample.targets, numbers, labels=labels, flag=model_flag)
    held_out = test.rows(0, PROBE_BATCH)
    try_evaluation(module, loss, held_out.inputs, held_out.targets, numbers, flag=model_flag)
    layout = _without_decay(layout, seen.unused)
    asked = config.machine
    config, notes = resolve_for_machine(config, module, layout, device, seen)
    problem = _problem(config, local, layout, source, loss, numbers, seen)
    config = resolve_chunk(config, problem, data, asked.chunk)
    config, timed = choose_executor(config, asked, problem, seen)
    if timed:
        notes += timed
        config = resolve_chunk(config, problem, data, asked.chunk)
    executor, config, tried = try_executor(config, problem)
    return Prepared(
        config=config,
        data=data,
        module=module,
        layout=layout,
        problem=problem,
        executor=executor,
        test=test,
        progress=Progress(config),
        memory=plan_memory(config, problem, data),
        random=seen.random,
        notes=(*notes, *tried),
    )


def _sources(config: RunConfig, data: DataSet, numbers: Numerics) -> tuple[Source, Source]:
    """Those of the training and of the test samples."""
    reading = Reading(
        kind=config.data.source,
        workers=config.data.nw,
        prefetch=config.data.prefetch,
        on_bad_sample=config.data.on_bad_sample,
        mean=data.mean,
        std=data.std,
        seed=config.machine.seed,
        device=numbers.device,
        dtype=numbers.dtype,
    )
    augment = bool(config.data.aug)
    return make_source(data.train, reading, augment=augment), make_source(data.test, reading, augment=False)


def _label_range(data: DataSet, loss: Loss) -> tuple[int, int] | None:
    """Lowest and highest label, where the loss takes them as numbers of outputs and they are known."""
    targets = [split.targets for split in (data.train, data.test) if split.targets is not None]
    if len(targets) < 2 or loss is not cross_entropy:
        return None
    if any(target.dim() != 1 or target.is_floating_point() for target in targets):
        return None
    return min(int(target.min()) for target in targets), max(int(target.max()) for target in targets)


def _resolve_batchnorm(config: RunConfig, module: nn.Module) -> RunConfig:
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.instancenorm._InstanceNorm) and part.track_running_stats:
            raise UsageError(f"model: {name} keeps running statistics, which local steps do not; leave them out")
    there = has_batchnorm(module)
    if config.model.bn and not there:
        raise UsageError(f"--bn 1: {config.model.model} has no BatchNorm; use --bn 0")
    if config.model.bn is False and there:
        raise UsageError(
            f"--bn 0: {config.model.model} has BatchNorm, whose running statistics local steps do not keep; use --bn 1"
        )
    if there and config.model.bn_batches < 1:
        raise UsageError(f"--bn-batches {config.model.bn_batches}: {config.model.model} has BatchNorm; give at least 1")
    return config.with_values(bn=there)


def _without_decay(layout: ParamLayout, unused: Sequence[str]) -> ParamLayout:
    """As torch.optim.SGD leaves parameters without a gradient alone, no weight decay reaches unused ones."""
    if not unused:
        return layout
    mask = layout.decay_mask.clone()
    for name, view in layout.views(mask).items():
        if name in unused:
            view.zero_()
    return dataclasses.replace(layout, decay_mask=mask)


def _problem(
    config: RunConfig,
    local: nn.Module,
    layout: ParamLayout,
    source: Source,
    loss: Loss,
    numbers: Numerics,
    seen: Probe,
) -> LocalProblem:
    noise = None
    if config.client.label_noise:
        if seen.classes is None:
            raise UsageError("--label-noise 1: the targets are not class labels")
        if seen.classes < 2:
            raise UsageError("--label-noise 1: needs at least two classes, the model has one")
        noise = LabelNoise(config.client.noise_p, seen.classes, config.machine.seed)
    topk: tuple[int, ...] = ()
    if seen.classes is not None:
        topk = (1, 5) if config.schedule.schedule == "epochs" else (1,)
    return LocalProblem(
        module=local,
        layout=layout,
        source=source,
        loss=loss,
        topk=topk,
        noise=noise,
        momentum=config.sgd.momentum,
        nesterov=config.sgd.nesterov,
        weight_decay=config.sgd.wd,
        numerics=numbers,
        clip_norm=config.sgd.clip_norm,
    )


def _build_loop(prepared: Prepared, logger: Logger, steps: StepLog | None) -> Loop:
    config, problem = prepared.config, prepared.problem
    assert config.machine.chunk is not None and config.log.log_pth is not None
    directory = Path(config.log.log_pth)
    averaged = AveragedModel(prepared.module, prepared.layout, problem.numerics)
    n_params = prepared.layout.n_params
    dtype, device = problem.numerics.dtype, problem.numerics.device
    momentum = None
    if config.sgd.momentum:
        momentum = MomentumStore(config.clients, n_params, config.machine.chunk, device, dtype)
    spec = StreamSpec(
        samples=len(problem.source),
        clients=config.clients,
        batch_size=config.client.batch_size,
        steps_per_epoch=prepared.progress.steps_per_epoch,
        replacement=config.client.replacement,
        seed=config.machine.seed,
    )
    return Loop(
        progress=prepared.progress,
        streams=Streams(spec, sample_pages(config, prepared.data)),
        source=problem.source,
        executor=prepared.executor,
        averaged=averaged,
        momentum=momentum,
        evaluate=lambda: evaluate(
            averaged.module, prepared.test, loss=problem.loss, topk=problem.topk, numerics=problem.numerics
        ),
        logger=logger,
        steps=steps,
        directory=directory,
        clients=config.clients,
        chunk=config.machine.chunk,
        bn_batches=config.model.bn_batches,
        topk=problem.topk,
        stop_on_nan=config.machine.on_nan == "stop",
        module_seed=config.machine.seed if prepared.random else None,
        saver=Saver(
            directory,
            every=config.log.save_every,
            minutes=config.log.save_minutes,
            keep=config.log.keep,
            sync=(lambda: None) if steps is None else steps.sync,
        ),
        config=dataclasses.asdict(config),
        grace=config.log.grace,
    )


@held_back()
def train(
    prepared: Prepared,
    *,
    overwrite: bool,
    sinks: Callable[[Path], Sequence[Logger]],
    resume: bool = False,
    eval_every: int | None = None,
) -> Loop:
    """Train to the end, in a new run directory or going on in one.

    sinks: makes the loggers beside metrics.jsonl, given the run directory
    resume: go on from the last state that was saved there; start over where there is none
    eval_every: rounds between evaluations that a profile reckons with, where they are not those of the run
    Returns the finished loop. On KeyboardInterrupt what was reached is saved.
    """
    config = prepared.config
    assert config.log.log_pth is not None
    directory = Path(config.log.log_pth)
    check_directory(directory, overwrite or resume)
    others = Loggers(sinks(directory))
    with ExitStack() as closing:
        closing.callback(others.close)
        make_directory(directory)
        closing.enter_context(locked(directory))
        state = find_state(directory, others.message) if resume else None
        logged: dict[str, Any] = {}
        if state is None:
            create_directory(directory, config)
        else:
            averaged = AveragedModel(prepared.module, prepared.layout, prepared.problem.numerics)
            shapes = {name: value.shape for name, value in averaged.tensors().items()}
            check_state(state, config, prepared.progress, shapes)
            if is_complete(state, prepared.progress):
                loop = _build_loop(prepared, others, None)
                _restore(loop, state)
                others.message(f"the run is complete after {loop.comm_round} rounds; --rounds or --epochs extends it")
                return loop
            logged = state.numbers["logged"]
            reopen_directory(directory, config)
        lines = JsonlLogger(directory, logged.get("metrics.jsonl", 0))
        closing.callback(lines.close)
        logger = Loggers([lines, others])
        if config.log.profile:
            watch = profiler(config, prepared.problem, directory, others.message, eval_every)
            closing.callback(watch.close)
            logger.sinks.append(watch)
        steps = StepLog(directory, logged.get("steps.jsonl", 0)) if config.log.debug else None
        loop = _build_loop(prepared, logger, steps)
        closing.callback(loop.saver.close)
        if state is None:
            _save_start(prepared, directory)
        else:
            logger.restore(logged)
            _restore(loop, state)
            logger.message(f"going on after {loop.comm_round} rounds")
        logger.start(_summary(prepared, directory, loop.at.first_step))
        for note in prepared.notes:
            logger.message(note)
        try:
            loop.run(config.schedule.eval_on_start)
        except KeyboardInterrupt:
            if not (loop.history and loop.saver.enabled):  # a model to look at, where no evaluation has left one
                loop.save_latest()
            raise
        return loop


def _save_start(prepared: Prepared, directory: Path) -> None:
    """Write the start weights, where they were drawn from the seed."""
    if prepared.config.model.resume_pth is None:
        schedule = prepared.config.schedule
        name = f"H={schedule.step1}-{schedule.step2}-{schedule.step3}_init.pt"
        save_model(directory / name, prepared.module.state_dict())


def _restore(loop: Loop, state: State) -> None:
    loop.restore(state)
    loop.history.extend(read_rows(loop.directory / "metrics.jsonl", state.numbers["logged"]["metrics.jsonl"]))
    if not loop.history:
        (loop.directory / "latest.pt").unlink(missing_ok=True)  # written as the run stopped, or later than `state`


def _summary(prepared: Prepared, directory: Path, steps_done: int) -> RunSummary:
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
    loop.load_averaged()
    return loop.averaged.module.eval()
