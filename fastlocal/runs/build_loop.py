"""Build the training loop of a prepared run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor, nn

from ..aggregation.averager import make_averager
from ..aggregation.buffer_mean import BufferMean
from ..aggregation.global_model import GlobalModel
from ..aggregation.server_optimizers import make_server_optimizer
from ..checkpoint.distributed_saver import make_saver
from ..config.targets import Target
from ..executors.registry import EXECUTORS
from ..executors.tuning.conv_strategy import parse_strategies
from ..models.mirror import Mirror
from ..models.modes import in_modes, modes_of
from ..models.own_functions import rebind_functions
from ..models.own_tensors import OwnTensors, tensors_of
from ..models.python_state import preserve_state
from ..params.client_stack import ClientStore
from ..params.disk_store import FOLDER_NAME, DiskStore
from ..telemetry.base import Logger
from ..telemetry.jsonl import StepLog
from ..training.algorithm_rounds import AlgorithmRounds
from ..training.client_evaluation import ClientEvaluator
from ..training.client_reports import ClientReports
from ..training.evaluation import Evaluation, RandomContext, evaluate
from ..training.evaluator import Evaluator
from ..training.fragments import Fragment, Fragments, fragment_columns
from ..training.loop import Loop
from ..training.planner import Planner
from ..training.server import ClientState, Server
from .build import PreparedRun
from .intra_op import suits_one_thread
from .store_plan import on_disk


def build_loop(prepared: PreparedRun, logger: Logger, steps: StepLog | None) -> Loop:
    """Build the training loop of a prepared run.

    Args:
        prepared: The run; its config names a run directory.
        logger: Takes what happens.
        steps: Log of every local step, or None.
    """
    config, problem, world = prepared.config, prepared.problem, prepared.world
    assert config.machine.chunk is not None and config.log.log_pth is not None
    directory = Path(config.log.log_pth)
    population, state = prepared.population, _client_state(prepared)
    global_model = make_global_model(prepared)
    dtype, device = problem.numerics.dtype, problem.numerics.device
    streams = population.streams(config, prepared.data, prepared.progress.steps_per_epoch)
    make_aggregator = functools.partial(
        make_averager,
        clients=config.clients,
        nodes=world.nodes,
        rank=world.rank,
        bucket_mb=config.machine.bucket_mb,
        reduce_order=config.machine.reduce_order,
        timeout=world.group_timeout,
    )
    columns = fragment_columns(problem.layout, config.schedule.sync_fragments)
    algorithm = AlgorithmRounds(prepared.algorithm, problem.algorithm, device, make_aggregator, columns)
    kept = (state == "keep" or algorithm.keeps_state) and not population.sampler.everybody
    clients = world.local_clients(population.sampler.population if kept else config.clients)
    chunk = min(config.machine.chunk, len(clients))
    start = dict(problem.state)
    if state != "reset":  # else the optimizer begins anew in every round
        start = {**problem.start_moments(global_model.flat_params), **start}
    averaged = start if state == "average" else problem.state
    start = start | algorithm.client_start
    if on_disk(config, problem) and start:
        folder = directory / FOLDER_NAME
        client_store: ClientStore = DiskStore(clients, start, chunk, device, folder=folder, rank=world.rank)
    else:
        client_store = ClientStore(clients, start, chunk, device)
    evaluator = Evaluator(
        global_model=global_model,
        source=problem.source,
        streams=streams,
        evaluate=lambda random_context: _evaluate(prepared, global_model.module, random_context),
        logger=logger,
        directory=directory,
        bn_batches=config.model.bn_batches,
        topk=problem.topk,
        tokens=prepared.data.tokens,
        stop_on_nan=config.machine.on_nan == "stop",
        module_seed=config.machine.seed if prepared.uses_rng else None,
        draws_seed=config.machine.seed if problem.draws else None,
        writes=world.is_rank0,
        weights=population.weights,
        owned=None if population.partition is None else len(population.partition.indices),
        stop_at=None if config.schedule.stop_at is None else Target.parse(config.schedule.stop_at),
    )
    return Loop(
        world=world,
        progress=prepared.progress,
        planner=Planner(
            progress=prepared.progress,
            streams=streams,
            weights=population.weights,
            population=population.sampler.population,
            clients=clients,
            kept=kept,
            chunk=chunk,
            dtype=dtype,
            device=device,
            index_device=problem.source.index_device,
        ),
        source=problem.source,
        problem=problem,
        executor=prepared.executor,
        global_model=global_model,
        server=Server(
            world=world,
            global_model=global_model,
            fragments=Fragments(
                [
                    Fragment(
                        place,
                        make_aggregator(global_model.flat_params[place], wire_format=config.machine.wire_format),
                        make_server_optimizer(config.server, global_model.flat_params[place]),
                        f"fragment {number} " if len(columns) > 1 else "",
                    )
                    for number, place in enumerate(columns)
                ]
            ),
            mean_state=BufferMean(averaged, dtype, world, make_aggregator) if averaged else None,
            client_state=state,
            algorithm=algorithm,
            changing=tuple(problem.state),
        ),
        client_store=client_store,
        evaluator=evaluator,
        logger=logger,
        steps=steps,
        log_steps=config.log.debug,
        saver=make_saver(
            directory,
            every=config.log.save_every,
            minutes=config.log.save_minutes,
            keep=config.log.keep,
            sync=functools.partial(_sync, client_store, steps),
            world=world,
        ),
        config=dataclasses.asdict(config),
        grace=config.log.grace,
        by_client=_client_reports(prepared, evaluator),
        one_thread=suits_one_thread(prepared.memory) and not config.machine.compile,
    )


def _sync(client_store: ClientStore, steps: StepLog | None) -> None:
    """Flush the files of a run to which its state refers."""
    client_store.sync()
    if steps is not None:
        steps.sync()


def _client_reports(prepared: PreparedRun, evaluator: Evaluator) -> ClientReports | None:
    """Return what evaluates clients; None without --eval-clients."""
    config, problem, held_out = prepared.config, prepared.problem, prepared.population.held_out
    if config.client.eval_clients is None or held_out is None:
        return None
    module = evaluator.global_model.module
    clients = ClientEvaluator(
        problem,
        evaluator.global_model,
        prepared.client_test,
        held_out,
        prepared.world,
        of_all=config.client.eval_clients_of == "all",
        stacked=EXECUTORS[config.machine.executor].in_place and problem.no_vmap is None,
        conv_strategy=parse_strategies(config.machine.conv_strategy, problem.module, problem.numerics.device),
        gradients=prepared.needs_gradients,
        context=functools.partial(_evaluation_context, prepared, module),
    )
    return ClientReports(clients, config.client.eval_clients, evaluator)


def _client_state(prepared: PreparedRun) -> ClientState:
    """Return how clients begin a round; without momentum and changing buffers there is nothing to keep."""
    everybody = prepared.population.sampler.everybody
    return prepared.config.client.client_state or ("keep" if everybody else "reset")


def make_global_model(prepared: PreparedRun) -> GlobalModel:
    """Make the global model with the start weights."""
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

    with _evaluation_context(prepared, module), own:
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


@contextlib.contextmanager
def _evaluation_context(prepared: PreparedRun, module: nn.Module) -> Iterator[None]:
    """Set the module and the user's to evaluation mode, and preserve what the loss keeps."""
    module.eval()
    shown = in_modes(prepared.user_module, modes_of(module))
    with preserve_state(prepared.problem.loss) if prepared.stateful_loss else nullcontext(), shown:
        yield
