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
from .config.validation import check
from .data.from_python import check_normalisation, make_split
from .data.types import DataSet, MapSplit, Split
from .distributed.ranks import LaunchInfo
from .distributed.world import connect
from .module_checks.structure import check_model, own_copy
from .params.losses import Loss, cross_entropy
from .params.precision import preserve_torch_flags
from .runs.build import PreparedRun, build_run
from .runs.resolve import resolve_device
from .runs.run import final_model
from .runs.run import train as train_prepared
from .telemetry.loggers import make_loggers
from .verification.checks import Verification
from .verification.run import verify_run


@dataclass(frozen=True)
class Run:
    """A finished run.

    history: one dictionary per evaluation, the lines of metrics.jsonl
    model: the plain module with the averaged weights, in evaluation mode; the module that was given is unchanged
    directory: where config.json, metrics.jsonl and the checkpoints are
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
    directory: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Train `clients` copies of `model`, averaged after every `local_steps` steps, for `rounds` rounds.

    docs/python.md says what modules, losses and Datasets may do.

    model: any module; its parameters that require a gradient are trained, in float32 unless `precision` says otherwise
    train, test: (inputs [n, ...], targets [n, ...]), tensors or arrays. Inputs reach the model as they are; uint8
        images [n, channels, height, width] are normalised where the settings `mean` and `std` are given; integer labels
        of any type become int64. Or map-style Datasets of such pairs, read by `nw` worker processes, which seed torch,
        NumPy and random before each sample
    batch_size: samples per client and step        lr: the rate that every client applies
    loss: (outputs of one batch, targets) -> mean loss as a scalar tensor; default cross-entropy. The test loss is that
        of all samples in one call for torch's own losses (modules, functions, functools.partial of these), and of any
        other callable the mean of the batches' losses, weighted by their sizes. Targets equal to a loss's
        `ignore_index` count in no accuracy
    eval_every, save_every: rounds between evaluations, and between named checkpoints
    directory: the run directory, a fresh one below runs/ by default        progress: show a progress bar
    overwrite, resume: start afresh in a `directory` that holds a run, or go on with it from its resume.pt (without one,
        start over), to more `rounds` if you like; other arguments must be what they were
    settings: any other field of RunConfig by its name, such as replacement=True, precision="bf16", executor="looped",
        chunk=50, warm_up=True, group_weight=True, wandb="offline"

    Raises ValueError for what cannot work, before anything is written; NonFiniteLoss (an ArithmeticError) where a loss
    is no longer finite.
    """
    check_model(model)
    if not isinstance(clients, int) or clients < 1:
        raise UsageError(f"clients {clients!r}: must be a whole number, at least 1")
    if resume and (directory is None or overwrite):
        raise UsageError("resume: needs the directory of the run, and no overwrite")
    config = _config(
        settings,
        dataset="python",
        model=type(model).__name__,
        batch_size=batch_size,
        total_batch_size=clients * batch_size if isinstance(batch_size, int) else 1,
        start_lr=None,
        client_lr=lr,
        rounds=rounds,
        step1=local_steps,
        step2=local_steps,
        step3=local_steps,
        eval_freq1=eval_every,
        eval_freq2=eval_every,
        eval_freq3=eval_every,
        save_freq1=save_every,
        save_freq2=save_every,
        save_freq3=save_every,
        momentum=momentum,
        nesterov=nesterov,
        wd=weight_decay,
        seed=seed,
        log_pth=None if directory is None else str(directory),
    )
    check(config)
    data = DataSet(
        name="python",
        train=_split("train", train, loss),
        test=_split("test", test, loss),
        classes=None,
        mean=config.data.mean,
        std=config.data.std,
    )
    check_normalisation(data)
    flag = f"model {type(model).__name__}"
    ranks, machine = LaunchInfo.from_environment(), config.machine
    with (
        preserve_torch_flags(),
        connect(
            ranks, url=machine.dist_url, timeout=machine.timeout, device=resolve_device(machine.device, ranks)
        ) as world,
    ):
        prepared = build_run(
            config, data, lambda: own_copy(model), loss or cross_entropy, model_flag=flag, world=world, given=model
        )
        if resume and prepared.remembers:
            raise UsageError("resume: the loss keeps something from call to call, which no saved state holds")
        with closing(prepared):
            others = partial(make_loggers, prepared.config.log, prepared.config.name, console=progress)
            loop = train_prepared(prepared, overwrite=overwrite, sinks=others, resume=resume, words=to_python_names)
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
    """Prove on this machine what a run of `train` with the same arguments is about to trust.

    Its kernels are checked against plain torch, each in a process of its own, and a few steps of three clients are
    taken in every way that a run may take. What is wrong is not used by later runs on this machine.

    data: (inputs [n, ...], targets [n, ...]) as `train` takes them
    seconds: within which each case of an operation must be through, compilation included
    ops: the operations to check; None: all that the device has
    progress: print each line as it comes

    Returns what was found: `passed`, `checks`, and as text a table. Raises ValueError for what cannot work.
    """
    check_model(model)
    if not seconds > 0:
        raise UsageError(f"seconds {seconds:g}: must be more than 0")
    if isinstance(ops, str):
        ops = [ops]
    far = 2**31 - 1
    values = {"dataset": "python", "model": type(model).__name__, "batch_size": batch_size, "start_lr": None}
    values |= {"total_batch_size": clients * batch_size, "client_lr": lr, "momentum": momentum, "nesterov": nesterov}
    settings = {"replacement": True, **settings}  # a few samples are enough here
    config = _config(settings, **values, wd=weight_decay, rounds=1, eval_freq1=far, save_freq1=far)
    check(config)
    split = _split("data", data, loss)
    whole = DataSet("python", split, split, classes=None, mean=config.data.mean, std=config.data.std)
    check_normalisation(whole)

    def prepared(config: RunConfig) -> PreparedRun:
        flag = f"model {type(model).__name__}"
        return build_run(config, whole, lambda: own_copy(model), loss or cross_entropy, model_flag=flag, given=model)

    device = resolve_device(config.machine.device)

    def say(line: str) -> None:
        if progress:
            print(to_python_names(line))

    return verify_run(config, device, prepared, ops=ops, seconds=seconds, say=say)


def _split(name: str, given: Any, loss: Loss | None = None) -> Split | MapSplit:
    return make_split(name, given, loss or cross_entropy)


def _config(settings: dict[str, Any], **values: Any) -> RunConfig:
    far = 2**31 - 1  # no decay unless a setting asks for one
    for name in settings:
        if name not in AREA_OF or name in UNSUPPORTED:
            known = set(AREA_OF) - set(UNSUPPORTED)
            raise UsageError(f"{name}: is no setting of fastlocal.train{nearest(name, known)}")
        if name in values:
            raise UsageError(f"{name}: is set by another argument of fastlocal.train")
    wanted = {"decay1": far, "decay2": far, "decay3": far, **values, **settings}
    checked = {}
    for name, value in wanted.items():
        try:
            checked[name] = convert(typing.get_type_hints(AREAS[AREA_OF[name]])[name], value, ARGUMENTS.get(name, name))
        except ValueError as error:
            raise UsageError(str(error)) from error
    return RunConfig().with_name("python").with_values(**checked)
