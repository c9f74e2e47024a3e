"""fastlocal.train: Local SGD on any module and any tensors."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..algorithms import Algorithm
from ..common.errors import UsageError
from ..common.random_states import enable_autograd, preserve_random_states
from ..common.standard_streams import hide_closed_streams
from ..config.python_names import python_names, to_python_names
from ..config.sync_checks import refuse_unused
from ..config.validation import check
from ..data.partition import Partition
from ..distributed.ranks import LaunchInfo
from ..distributed.world import connect
from ..module_checks.structure import check_model, copy_model
from ..params.losses import Loss, cross_entropy
from ..params.precision import preserve_torch_flags
from ..runs.build import build_run
from ..runs.population import PARTITION_FILE
from ..runs.resolve import resolve_device
from ..runs.run import final_model
from ..runs.run import train as train_prepared
from ..telemetry.loggers import make_loggers
from .settings import data_set, run_config


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        history: One dictionary per evaluation, the lines of metrics.jsonl.
        model: A plain module with the averaged weights, in evaluation mode; the user's module is unchanged.
        directory: The run directory with config.json, metrics.jsonl and the checkpoints.
    """

    history: list[dict[str, Any]]
    model: nn.Module
    directory: Path


@python_names()
@hide_closed_streams()
@preserve_random_states()
@enable_autograd()
def train(
    model: nn.Module,
    train: Any,
    test: Any,
    *,
    clients: int,
    local_steps: int = 1,
    batch_size: int = 32,
    lr: float = 0.1,
    rounds: int | None = None,
    loss: Loss | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    eval_every: int = 1,
    save_every: int = 100,
    seed: int = 0,
    partition: str | Path | Partition | None = None,
    algorithm: str | Algorithm = "fedavg",
    directory: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Train `clients` copies of `model` for `rounds` rounds, averaging them after every `local_steps` steps.

    docs/python.md lists the requirements on modules, losses and Datasets.

    Args:
        model: Any module. Its parameters that require a gradient are trained, in float32 unless `precision` is set.
        train: (inputs [n, ...], targets [n, ...]) as tensors or arrays, or a map-style Dataset of such pairs, or
            `fastlocal.per_client` of one of these per client. Inputs reach the model unchanged; uint8 images are
            normalised if `mean` and `std` are set; integer labels become int64. Datasets are read by `nw` processes,
            which seed torch, NumPy and random before each sample.
        test: The test samples, in the format of `train`.
        clients: Number of clients, or of those that take part in a round if the `partition` has more.
        local_steps: Local steps per round.
        batch_size: Samples per client and step.
        lr: Learning rate of every client.
        rounds: Number of communication rounds; None: 100, or those of the setting `epochs`.
        loss: (outputs of one batch, targets) -> mean loss as a scalar tensor; default cross-entropy. The test loss is
            the loss of all samples in one call for torch's own losses (modules, functions, functools.partial of these);
            for any other callable it is the mean of the batch losses, weighted by their sizes. Targets equal to the
            `ignore_index` of a loss are left out of accuracies.
        momentum: Momentum of the clients' SGD.
        nesterov: Whether to use Nesterov momentum.
        weight_decay: Weight decay of the clients' SGD.
        eval_every: Rounds between evaluations.
        save_every: Rounds between named checkpoints.
        seed: Seed of the run.
        partition: Who owns which training samples: a Partition such as `fastlocal.partition.dirichlet(labels,
            clients=100, alpha=0.1)`, a file of one, or a procedure's name. None: those of `fastlocal.per_client`, else
            nobody, and every epoch's order is dealt to the clients.
        algorithm: Name of an algorithm, or an object of a subclass of `fastlocal.Algorithm`.
        directory: The run directory; by default a new one below runs/.
        overwrite: Start afresh in a `directory` that holds a run.
        resume: Continue the run in `directory` from its resume.pt, or start over without one. `rounds` may grow; other
            arguments must stay the same.
        progress: Show a progress bar.
        settings: Any other field of RunConfig by its name, such as replacement=True, precision="bf16",
            executor="looped", chunk=50, group_weight=True, server_optimizer="adam", client_state="keep".

    Returns:
        The history, the averaged model and the run directory.

    Raises:
        ValueError: The arguments cannot work; nothing is written.
        NonFiniteLoss: A loss is not finite (an ArithmeticError).
    """
    check_model(model)
    if resume and (directory is None or overwrite):
        raise UsageError("resume: needs the directory of the run, and no overwrite")
    config = run_config(
        settings,
        model=type(model).__name__,
        train=train,
        clients=clients,
        local_steps=local_steps,
        batch_size=batch_size,
        lr=lr,
        rounds=rounds,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        eval_every=eval_every,
        save_every=save_every,
        seed=seed,
        partition=partition,
        algorithm=algorithm,
        directory=directory,
    )
    refuse_unused(settings.keys(), config)
    check(config)
    data = data_set(train, test, loss, config)
    ranks, machine = LaunchInfo.from_environment(), config.machine
    with (
        preserve_torch_flags(),
        connect(
            ranks, url=machine.dist_url, timeout=machine.timeout, device=resolve_device(machine.device, ranks)
        ) as world,
    ):
        prepared = build_run(
            config,
            data,
            lambda: copy_model(model),
            loss or cross_entropy,
            model_flag=f"model {type(model).__name__}",
            world=world,
            user_module=model,
            partition=partition if isinstance(partition, Partition) else None,
            algorithm=algorithm if isinstance(algorithm, Algorithm) else None,
            stored_partition=Path(directory) / PARTITION_FILE if resume and directory is not None else None,
        )
        if resume and prepared.stateful_loss:
            raise UsageError("resume: the loss keeps something from call to call, which no saved state holds")
        with closing(prepared):
            loop = train_prepared(
                prepared,
                overwrite=overwrite,
                make_loggers=partial(make_loggers, prepared.config.log, prepared.config.name, console=progress),
                resume=resume,
                words=to_python_names,
            )
            return Run(history=list(loop.history), model=final_model(loop), directory=loop.directory)
