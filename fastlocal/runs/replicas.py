"""Runs that differ from another run in hyperparameters and seeds, and share its data and its program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from ..aggregation.server_optimizers import resolve_server
from ..algorithms import make_algorithm, resolve_algorithm
from ..config.schema import RunConfig
from ..data.datasets import SEEDED
from ..data.sources.resident import ResidentSource
from ..executors.registry import EXECUTORS
from ..models.functional import local_module
from ..models.modes import cast, training_modes
from ..models.own_tensors import tensors_of
from ..params.param_layout import param_layout
from ..schedule.owned_rounds import make_progress
from .build import PreparedRun
from .local_problem import with_algorithm
from .memory_plan import plan_memory
from .population import build_population
from .resolve import default_chunk, resolve_for_data

REPLICA_FIELDS = frozenset(
    {
        *("noise_p", "replacement", "partition", "alpha", "shards_per_client", "classes_per_client"),
        *("min_client_size", "partition_as", "population", "cohort_sampling", "clients_drop", "client_epochs"),
        *("client_weights", "client_state", "client_store", "client_test", "eval_clients", "eval_clients_of"),
        *("stop_at", "local_epochs", "last_batch", "stragglers"),
        *("start_lr", "lr", "client_lr", "max_lr", "warm_up", "warmup_epochs", "gamma", "momentum", "wd"),
        *("prox_mu", "feddyn_alpha"),
        *("server_optimizer", "server_lr", "server_momentum", "server_beta1", "server_beta2", "server_tau"),
        *("server_accumulator", "server_bias_correction"),
        *("epochs", "rounds", "steps_per_epoch", "decay1", "decay2", "decay3", "lr_schedule", "eval_on_start"),
        *("sync", "qsr_alpha", "h_min", "post_local_from"),
        *("eval_freq1", "eval_freq2", "eval_freq3", "save_freq1", "save_freq2", "save_freq3"),
        *("bn_batches", "seed", "on_nan", "log_pth"),
    }
)
"""Settings in which runs of one program may differ."""


def program_key(config: RunConfig) -> tuple[object, ...]:
    """Return what runs of one program have in common: equal keys can be replicas of each other."""
    own = {*REPLICA_FIELDS} - ({"seed"} if config.data.dataset in SEEDED else set())
    fields = dataclasses.asdict(config)
    shared = [(area, name, repr(value)) for area, values in fields.items() if isinstance(values, dict)
              for name, value in values.items() if name not in own]  # fmt: skip
    return (*shared, config.sgd.momentum > 0, config.owned)


def can_replicate(base: PreparedRun) -> bool:
    """Return True if other runs can train as replicas of `base`.

    Their local steps must be functions of hyperparameters and seeds alone: resident samples, no state of the loss, and
    no random numbers but those of client_random.
    """
    resident = isinstance(base.problem.source, ResidentSource)
    return resident and not (base.uses_rng or base.stateful_loss or base.problem.shared is not None)


def replicas_at_once(base: PreparedRun, runs: int) -> int:
    """Return the number of runs like `base` that fit into memory at once; all processes agree on it.

    Runs whose clients do not fit at once themselves train one after the other.
    """
    config, world = base.config, base.world
    assert config.machine.chunk is not None, "resolved before"
    clients = len(world.local_clients(config.clients))
    fits = 1
    if can_replicate(base) and config.machine.chunk >= clients:
        rows = runs * clients
        local = config.with_values(
            total_batch_size=rows * config.client.batch_size, chunk=None, population=None, client_state=None
        )
        plan = plan_memory(local, base.problem, base.data)
        needs, in_place = plan.needs, EXECUTORS[config.machine.executor].in_place
        # the rows of several runs are copied to one stack
        copied = needs.row * (1 + needs.moments) + needs.state if in_place else 0
        counts = range(2, runs + 1)
        fits = max([1, *(n for n in counts if needs.total(n * clients) + n * clients * copied <= plan.limit)])
        if base.problem.numerics.device.type == "cpu" and in_place:
            rows = default_chunk(local, base.layout.n_params, config.machine.executor)
            fits = max(1, min(fits, rows // clients))
    return min(world.all_gather_object(fits, "the number of replicas"))


def build_replica(
    base: PreparedRun, config: RunConfig, make_module: Callable[[], nn.Module], stored_partition: Path | None = None
) -> PreparedRun | None:
    """Build a run that shares the data and the program of `base`, or return None if its module differs.

    Args:
        base: A run that can_replicate, of the same program_key.
        config: Settings of the run, checked.
        make_module: Makes the plain module with the start weights of the run.
        stored_partition: File with the partition of a run that continues, or None.

    Raises:
        UsageError: The run cannot work.
    """
    problem, numbers = base.problem, base.problem.numerics
    module = cast(make_module(), numbers.device, numbers.dtype)
    modes = training_modes(module)
    local = local_module(module, modes)
    if not _same_program(base, module, local):
        return None
    config = resolve_algorithm(resolve_server(config))
    config, _ = resolve_for_data(config, base.data, numbers.device)
    given = base.population.owned if config.client.partition == "python" else None
    config, population = build_population(config, base.data, given, stored_partition)
    config = dataclasses.replace(
        config,
        data=base.config.data,
        model=dataclasses.replace(base.config.model, bn_batches=config.model.bn_batches),
        machine=dataclasses.replace(base.config.machine, seed=config.machine.seed, on_nan=config.machine.on_nan),
    )
    assert isinstance(problem.source, ResidentSource), "see can_replicate"
    seed, noise, tensors = config.machine.seed, problem.noise, tensors_of(module)
    own_problem = dataclasses.replace(
        problem,
        module=local,
        source=problem.source.with_seed(seed),
        noise=None if noise is None else dataclasses.replace(noise, p=config.client.noise_p, seed=seed),
        momentum=config.sgd.momentum,
        weight_decay=config.sgd.wd,
        seed=seed,
        state={name: tensors[name].detach().clone() for name in problem.state},
    )
    algorithm = make_algorithm(config)
    own_problem = with_algorithm(own_problem, algorithm, module, config.schedule.sync_fragments)
    return dataclasses.replace(
        base,
        config=config,
        module=module,
        modes=modes,
        problem=own_problem,
        executor=base.executor.replica(own_problem),
        progress=make_progress(config, population.work.most),
        population=population,
        algorithm=algorithm,
        notes=tuple(population.notes()),
        resources=ExitStack(),
    )


def _same_program(base: PreparedRun, module: nn.Module, local: nn.Module) -> bool:
    """Return True if a module has the parameters of `base` and the same values in all tensors that are not trained."""
    layout = param_layout(module, group_weight=base.config.sgd.group_weight)
    if (layout.names, layout.shapes) != (base.layout.names, base.layout.shapes):
        return False
    changing = {*layout.names, *base.problem.state}
    own, fixed = tensors_of(local), tensors_of(base.problem.module)
    return own.keys() == fixed.keys() and all(torch.equal(own[name], fixed[name]) for name in own.keys() - changing)
