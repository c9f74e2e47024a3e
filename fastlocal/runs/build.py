"""Resolve a RunConfig and build the parts of a run from it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fastlocal import kernels

from ..aggregation.server_optimizers import resolve_server, server_rows
from ..algorithms import Algorithm, make_algorithm, refuse_state, resolve_algorithm
from ..common.errors import UsageError
from ..common.machine import keep_freed_memory
from ..config.schema import RunConfig
from ..config.targets import Target
from ..data.partition import Partition
from ..data.sources.base import Source
from ..data.types import DataSet
from ..distributed.world import World
from ..executors.base import LocalProblem
from ..executors.interface import Executor
from ..executors.registry import EXECUTORS
from ..kernel_trial import verdicts
from ..kernel_trial.kernels_tried import try_kernels, used_ops
from ..models.functional import local_module
from ..models.modes import Modes, cast, in_modes, training_modes
from ..models.own_tensors import tensors_of
from ..models.python_state import PythonState, preserve_state
from ..module_checks.first_batches import first_batches
from ..module_checks.first_steps import compare
from ..module_checks.plain_steps import PlainModule
from ..module_checks.probe import Probe, probe_module
from ..module_checks.side_effects import UserModuleState
from ..module_checks.structure import refuse_aliases
from ..module_checks.trial_evaluation import try_evaluation
from ..params.losses import Loss, move_loss
from ..params.param_layout import ParamLayout, param_layout
from ..params.precision import numerics
from ..schedule.owned_rounds import make_progress
from ..schedule.rounds import Progress
from .executor_choice import choose_executor, default_executor
from .executor_trial import try_executor
from .local_problem import build_problem, ignored_label, label_range, with_algorithm, without_decay
from .memory_plan import MemoryPlan, plan_memory, resolve_chunk
from .population import Population, build_population
from .rank_config import localize_config, merge_rank_config
from .resolve import (
    refuse_shared_gpu,
    resolve_batchnorm,
    resolve_device,
    resolve_for_data,
    resolve_for_machine,
    resolve_for_stateful_loss,
)
from .sources import open_sources
from .store_plan import refuse_full_disk

PROBE_BATCH = 4
HELD_OUT = 5
"""Test samples of the probe; unlike PROBE_BATCH, so that a loss that keeps a training batch fails here."""


@dataclass(frozen=True)
class PreparedRun:
    """A run that is checked and has written nothing yet.

    Attributes:
        config: The resolved settings.
        modes: Training modes of the module's parts.
        test: The test samples.
        client_test: The training samples without augmentation, for those that clients hold out.
        population: The clients of all processes.
        memory: Predicted memory of this process.
        algorithm: The algorithm of the run.
        uses_rng: Whether the module draws random numbers that no client's seed fixes.
        no_vmap: Why vmap cannot take the module, or None.
        stateful_loss: Whether the loss keeps state between calls.
        needs_gradients: Whether an evaluation takes derivatives.
        user_module: The user's own module, which a hook or the loss may refer to, or None.
        notes: Log lines for the start of the run.
        resources: Closes the sources and restores the modes of the user's module.
    """

    config: RunConfig
    world: World
    data: DataSet
    module: nn.Module
    modes: Modes
    layout: ParamLayout
    problem: LocalProblem
    executor: Executor
    test: Source
    client_test: Source
    progress: Progress
    population: Population
    memory: MemoryPlan
    algorithm: Algorithm
    uses_rng: bool
    no_vmap: str | None
    stateful_loss: bool
    needs_gradients: bool
    user_module: nn.Module | None
    notes: tuple[str, ...]
    resources: ExitStack

    def close(self) -> None:
        """End the threads and processes that read samples, and restore the modes of the user's module."""
        self.resources.close()


def build_run(
    config: RunConfig,
    data: DataSet,
    make_module: Callable[[], nn.Module],
    loss: Loss,
    *,
    model_flag: str,
    world: World | None = None,
    user_module: nn.Module | None = None,
    partition: Partition | None = None,
    algorithm: Algorithm | None = None,
    stored_partition: Path | None = None,
    replicas: int = 1,
) -> PreparedRun:
    """Resolve `config` against the data, the model and the machine, and build the run.

    Writes only timings of this machine, to the user's cache.

    Args:
        config: Settings, checked by config.validation.check.
        data: The data set.
        make_module: Makes the plain module with its start weights.
        loss: The loss.
        model_flag: Flag or argument that names the model, for messages.
        world: The processes of the run, whose rank 0 chooses the executor for all; None for one process.
        user_module: The user's own module, which the loss or a hook may refer to.
        partition: The user's own partition, or None for that of --partition.
        algorithm: The user's own algorithm, or None for that of --algorithm.
        stored_partition: File with the partition of a run that continues, or None.
        replicas: Number of runs like this one that train together, for the choice of an executor.

    Raises:
        UsageError: The run cannot work.
    """
    world = world or World.single()
    device = resolve_device(config.machine.device, world.ranks)
    refuse_shared_gpu(device, world)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # Triton launches on the current device, wherever its tensors are
    if device.type == "cpu":
        keep_freed_memory()
    config = resolve_algorithm(resolve_server(config), algorithm)
    algorithm = algorithm or make_algorithm(config)
    config, data = resolve_for_data(config, data, device)
    config, population = build_population(config, data, partition, stored_partition)
    if config.schedule.sync_fragments > 1 and not population.sampler.everybody:
        raise UsageError(
            f"--sync-fragments {config.schedule.sync_fragments}: all clients must take part in every round, because "
            "each keeps its parameters; leave --clients-drop out, and --clients at --population"
        )
    assert config.machine.precision is not None, "resolved just now"
    numbers = numerics(config.machine.precision, device, repeatable=config.machine.deterministic)
    module = cast(make_module(), device, numbers.dtype)
    modes = training_modes(module)
    if user_module is not None:
        own_parts = [id(part) for part in user_module.modules()]
        refuse_aliases("loss", PythonState(loss, without=own_parts).tensors, user_module)
    loss = move_loss(loss, device, numbers.dtype, user_module)
    config = resolve_batchnorm(config, module)
    layout = param_layout(module, group_weight=config.sgd.group_weight)
    if layout.n_params == 0:
        raise UsageError(f"{model_flag}: has no parameter that requires a gradient")
    adamw = config.sgd.client_optimizer == "adamw"
    ops = used_ops(module, adamw=adamw, server=server_rows(config.server) > 0)
    kernel_notes = _try_kernels(ops, device, world)
    with ExitStack() as opened, _training_modes(user_module, modes, opened), preserve_state(loss):
        source, test, client_test = open_sources(config, data, population, numbers, opened)
        user_tensors = {} if user_module is None else tensors_of(user_module)
        tensor_names = {id(value): name for name, value in user_tensors.items()}
        plain = PlainModule(
            module=module,
            modes=modes,
            loss=loss,
            numerics=dataclasses.replace(numbers, autocast_dtype=None),
            user_module=user_module,
            user_state=UserModuleState(user_module),
            tensor_names=tensor_names,
            labels=label_range(data, loss),
            seed=config.machine.seed,
            flag=model_flag,
        )
        batches = first_batches(source, data.train, min(PROBE_BATCH, config.client.batch_size))
        held_out = test.read_range(0, HELD_OUT)
        ignored = ignored_label(data, loss, noise=config.client.label_noise)
        with preserve_state(loss):
            probe = probe_module(plain, batches, layout.names)
            needs_gradients = try_evaluation(plain, held_out.inputs, held_out.targets, numbers)
        local = local_module(module, modes)
        problem = build_problem(config, local, layout, source, loss, numbers, probe, tensor_names, ignored, user_module)
        problem = with_algorithm(problem, algorithm, module, config.schedule.sync_fragments)
        if problem.algorithm.clients:
            refuse_state(config)
        if config.schedule.stop_at is not None:
            Target.parse(config.schedule.stop_at).check(problem.topk, tokens=data.tokens)
        probe = compare(plain, problem, batches, probe)
        if probe.no_vmap is None:  # without vmap, clients step one by one, and each step may use other parameters
            layout = without_decay(layout, probe.unused)
        tensor_names = tensor_names if probe.reached else {}
        problem = dataclasses.replace(problem, layout=layout, tensor_names=tensor_names, no_vmap=probe.no_vmap)
        config = resolve_for_stateful_loss(config, probe, world)
        part = localize_config(config, world, device)
        executor, notes = None, kernel_notes
        if world.is_rank0:
            requested = part.machine
            if requested.executor == "auto":
                name, default_notes = default_executor(part, problem)
            else:
                name, default_notes = requested.executor, []
                refusal = EXECUTORS[name].refusal(problem)
                if refusal is not None:
                    raise UsageError(f"--executor {name}: {refusal}")
            notes += default_notes + _notes(probe)
            part = resolve_for_machine(part, name, problem, replicas)
            part = resolve_chunk(part, problem, data, requested.chunk)
            refuse_full_disk(config, problem)
            steps, share = population.mean_steps, population.busy_share
            part, choice_notes = choose_executor(part, requested, problem, replicas, steps, share)
            if choice_notes:
                notes += choice_notes
                part = resolve_chunk(part, problem, data, requested.chunk)
            executor, part, trial_notes = try_executor(part, problem)
            notes += trial_notes + population.notes()
        config = merge_rank_config(config, part, world)
        if executor is None:
            part = localize_config(config, world, device)
            executor, part, _ = try_executor(part, problem)
        prepared = PreparedRun(
            config=config,
            world=world,
            data=data,
            module=module,
            modes=modes,
            layout=layout,
            problem=problem,
            executor=executor,
            test=test,
            client_test=client_test,
            progress=make_progress(config, population.work.most),
            population=population,
            memory=plan_memory(part, problem, data),
            algorithm=algorithm,
            uses_rng=probe.uses_rng,
            no_vmap=probe.no_vmap,
            stateful_loss=probe.stateful_loss,
            needs_gradients=needs_gradients,
            user_module=user_module,
            notes=tuple(notes),
            resources=opened.pop_all(),
        )
    return prepared


@contextlib.contextmanager
def _training_modes(module: nn.Module | None, modes: Modes, opened: ExitStack) -> Iterator[None]:
    """Set the user's module to the training modes until `opened` closes, because a hook or the loss may read them."""
    opened.enter_context(in_modes(module, modes))
    yield


def _try_kernels(ops: Sequence[str], device: torch.device, world: World) -> list[str]:
    """Try the kernels of `ops`, disable on all ranks those that fail on one, and return log lines about them."""
    failures = try_kernels(device, ops)
    if device.type == "cuda":
        for reasons in world.all_gather_object(failures, "the trial of the kernels"):
            for op, reason in reasons.items():
                kernels.refuse(op, "triton", reason)
    return verdicts.lines_for(device, ops)


def _notes(probe: Probe) -> list[str]:
    """Return log lines about the result of the probe."""
    notes = []
    if probe.uses_rng:
        notes.append(
            "the model draws random numbers that no client's seed fixes (from NumPy or Python, say): they depend on "
            "--chunk and --executor"
        )
    if probe.unused:
        more = f" and {len(probe.unused) - 3} more" if len(probe.unused) > 3 else ""
        notes.append(f"no gradient reaches {', '.join(probe.unused[:3])}{more}: they stay as they are")
    return notes
