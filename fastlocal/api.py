"""Local SGD on any module and any tensors, from Python."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from .common.errors import UsageError, nearest
from .common.random_states import enable_autograd, preserve_random_states
from .common.standard_streams import hide_closed_streams
from .config.python_names import ARGUMENTS, UNSUPPORTED, python_names, to_python_names
from .config.schema import AREA_OF, AREAS, RunConfig
from .config.serialization import convert
from .config.validation import check, refuse_phases
from .data.from_python import check_normalisation, make_split
from .data.partition import Partition
from .data.per_client import PerClient, join
from .data.types import DataSet, MapSplit, Split
from .distributed.ranks import LaunchInfo
from .distributed.world import connect
from .module_checks.structure import check_model, copy_model
from .params.losses import Loss, cross_entropy
from .params.precision import preserve_torch_flags
from .runs.build import PreparedRun, build_run
from .runs.population import PARTITION_FILE
from .runs.resolve import resolve_device
from .runs.run import final_model
from .runs.run import train as train_prepared
from .telemetry.loggers import make_loggers
from .verification.checks import Verification
from .verification.run import verify_run


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
    rounds: int = 100,
    loss: Loss | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    eval_every: int = 1,
    save_every: int = 100,
    seed: int = 0,
    partition: str | Path | Partition | None = None,
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
        rounds: Number of communication rounds.
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
    if not isinstance(clients, int) or clients < 1:
        raise UsageError(f"clients {clients!r}: must be a whole number, at least 1")
    if resume and (directory is None or overwrite):
        raise UsageError("resume: needs the directory of the run, and no overwrite")
    own_clients = isinstance(train, PerClient)
    if own_clients and partition not in (None, "natural"):
        raise UsageError("partition: with per_client, samples have their clients already; give one of them")
    if not isinstance(partition, str | Path | Partition | None):
        raise UsageError(f"partition: is a {type(partition).__name__}; give a Partition (its from_lists makes one)")
    given = partition if isinstance(partition, Partition) else None
    name = "python" if given is not None else str(partition or ("natural" if own_clients else "shared"))
    config = _config(
        settings,
        dataset="python",
        partition=name,
        model=type(model).__name__,
        batch_size=batch_size,
        total_batch_size=clients * batch_size if isinstance(batch_size, int) else 1,
        start_lr=None,
        client_lr=lr,
        rounds=rounds,
        **{f"step{phase}": local_steps for phase in (1, 2, 3)},
        **{f"eval_freq{phase}": eval_every for phase in (1, 2, 3)},
        **{f"save_freq{phase}": save_every for phase in (1, 2, 3)},
        momentum=momentum,
        nesterov=nesterov,
        wd=weight_decay,
        seed=seed,
        log_pth=None if directory is None else str(directory),
    )
    refuse_phases(settings, config)
    check(config)
    samples, natural = join(train, loss or cross_entropy) if own_clients else (_split("train", train, loss), None)
    data = DataSet(
        name="python",
        train=samples,
        test=_split("test", test, loss),
        classes=None,
        mean=config.data.mean,
        std=config.data.std,
        natural=natural,
    )
    check_normalisation(data)
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
            partition=given,
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


@python_names()
@hide_closed_streams()
@preserve_random_states()
@enable_autograd()
def verify(
    model: nn.Module,
    data: Any,
    *,
    clients: int = 3,
    batch_size: int = 32,
    lr: float = 0.1,
    loss: Loss | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    seconds: float = 120.0,
    ops: Sequence[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> Verification:
    """Check on this machine the kernels and executors that `train` with the same arguments may use.

    Each kernel is compared with plain torch in its own process, and every executor takes a few steps of three clients.
    Later runs on this machine do not use what fails.

    Args:
        model: As in `train`.
        data: (inputs [n, ...], targets [n, ...]), in the format of `train`.
        clients: As in `train`.
        batch_size: As in `train`.
        lr: As in `train`.
        loss: As in `train`.
        momentum: As in `train`.
        nesterov: As in `train`.
        weight_decay: As in `train`.
        seconds: Limit for each case of an operation, including compilation.
        ops: The operations to check; None for all operations of the device.
        progress: Print each result at once.
        settings: As in `train`.

    Returns:
        The results: `passed`, `checks`, and a table as text.

    Raises:
        ValueError: The arguments cannot work.
    """
    check_model(model)
    if not seconds > 0:
        raise UsageError(f"seconds {seconds:g}: must be more than 0")
    ops = [ops] if isinstance(ops, str) else ops
    never = 2**31 - 1
    values = {"dataset": "python", "model": type(model).__name__, "batch_size": batch_size, "start_lr": None}
    values |= {"total_batch_size": clients * batch_size, "client_lr": lr, "momentum": momentum, "nesterov": nesterov}
    settings = {"replacement": True, **settings}  # fewer samples than clients * batch_size are enough
    config = _config(settings, **values, wd=weight_decay, rounds=1, eval_freq1=never, save_freq1=never)
    check(config)
    split = _split("data", data, loss)
    data_set = DataSet("python", split, split, classes=None, mean=config.data.mean, std=config.data.std)
    check_normalisation(data_set)

    def build(config: RunConfig) -> PreparedRun:
        flag = f"model {type(model).__name__}"
        return build_run(
            config, data_set, lambda: copy_model(model), loss or cross_entropy, model_flag=flag, user_module=model
        )

    device = resolve_device(config.machine.device)

    def say(line: str) -> None:
        if progress:
            print(to_python_names(line))

    return verify_run(config, device, build, ops=ops, seconds=seconds, say=say)


def _split(name: str, samples: Any, loss: Loss | None = None) -> Split | MapSplit:
    return make_split(name, samples, loss or cross_entropy)


def _config(settings: dict[str, Any], **values: Any) -> RunConfig:
    """Return a RunConfig of `values` and the user's `settings`; raise UsageError for unknown or wrong settings."""
    never = 2**31 - 1  # no learning-rate decay without a setting
    for name in settings:
        if name not in AREA_OF or name in UNSUPPORTED:
            known = set(AREA_OF) - set(UNSUPPORTED)
            raise UsageError(f"{name}: is no setting of fastlocal.train{nearest(name, known)}")
        if name in values:
            raise UsageError(f"{name}: is set by another argument of fastlocal.train")
    fields = {"decay1": never, "decay2": never, "decay3": never, **values, **settings}
    converted = {}
    for name, value in fields.items():
        try:
            converted[name] = convert(
                typing.get_type_hints(AREAS[AREA_OF[name]])[name], value, ARGUMENTS.get(name, name)
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
    return RunConfig().with_name("python").with_values(**converted)
