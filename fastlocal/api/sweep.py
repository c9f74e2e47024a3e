"""fastlocal.sweep: train a module for every combination of settings."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint.restore import with_stored_settings
from ..checkpoint.run_directory import default_directory
from ..common.errors import UsageError, nearest
from ..common.random_states import enable_autograd, preserve_random_states
from ..common.standard_streams import hide_closed_streams
from ..config.python_names import UNSUPPORTED, python_names
from ..config.schema import AREA_OF, RunConfig
from ..config.validation import check
from ..data.partition import Partition
from ..data.types import DataSet
from ..distributed.ranks import LaunchInfo
from ..distributed.world import World, connect
from ..module_checks.structure import check_model, copy_model
from ..params.losses import Loss, cross_entropy
from ..params.precision import preserve_torch_flags
from ..reports.sweep_records import read_sweep
from ..reports.tables import Table, results, summary, write_tables
from ..runs.build import PreparedRun, build_run
from ..runs.resolve import resolve_device
from ..sweeps.axes import REFUSED, Values, grid, join_columns
from ..sweeps.console import SweepConsole
from ..sweeps.directory import SWEEP_FILE, SweepDirectory
from ..sweeps.halving import Halving, refuse_metric
from ..sweeps.plan import SweepRun, make_runs
from ..sweeps.train import train_sweep
from .settings import data_set, run_config

Over = Mapping[str | tuple[str, ...], Sequence[Any]] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
        directory: Directory of the sweep, with a run directory for each run, sweep.json and the tables.
        results: A dictionary for each run, the lines of results.csv.
        summary: A dictionary for each setting, the lines of summary.csv: statistics over seeds.
    """

    directory: Path
    results: list[dict[str, Any]]
    summary: list[dict[str, Any]]


@python_names()
@hide_closed_streams()
@preserve_random_states()
@enable_autograd()
def sweep(
    model: nn.Module | Callable[[int], nn.Module],
    train: Any,
    test: Any,
    *,
    over: Over,
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
    halving: int | None = None,
    metric: str = "val_acc1",
    directory: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Sweep:
    """Train a run for every combination of values, those of one program as rows of one stack.

    Each run has the directory, the metrics and the checkpoints that `fastlocal.train` with its values would write.

    Args:
        model: A module, with which every run starts; or a function of the seed that returns one.
        train: As in `fastlocal.train`, and so are all arguments that are not named here.
        test: As in `fastlocal.train`.
        over: {argument: values}, for a run for every combination; a tuple of arguments has tuples of values, which
            move together. Or a list of {argument: value}, one for each run. Any argument of `fastlocal.train` but
            the samples and the loss, and any setting, such as {"seed": range(5), "lr": [0.1, 0.2]}.
        clients: As in `fastlocal.train`.
        local_steps: As in `fastlocal.train`.
        batch_size: As in `fastlocal.train`.
        lr: As in `fastlocal.train`.
        rounds: As in `fastlocal.train`.
        loss: As in `fastlocal.train`.
        momentum: As in `fastlocal.train`.
        nesterov: As in `fastlocal.train`.
        weight_decay: As in `fastlocal.train`.
        eval_every: As in `fastlocal.train`.
        save_every: As in `fastlocal.train`.
        seed: As in `fastlocal.train`.
        partition: As in `fastlocal.train`.
        halving: After `halving` rounds, twice as many, and so on, the worse half of the settings stops; None: none.
        metric: Key of metrics.jsonl that `halving` compares, the mean over seeds.
        directory: The directory of the sweep; by default a new one below runs/.
        overwrite: Start afresh in a `directory` that holds a sweep.
        resume: Continue the sweep in `directory`, with the same arguments.
        progress: Show a table.
        settings: Any other field of RunConfig by its name.

    Returns:
        The directory and the tables.

    Raises:
        ValueError: The arguments cannot work; nothing is written.
    """
    arguments = {
        **{"clients": clients, "local_steps": local_steps, "batch_size": batch_size, "lr": lr, "rounds": rounds},
        **{"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "eval_every": eval_every},
        **{"save_every": save_every, "seed": seed, "partition": partition},
    }
    if resume and (directory is None or overwrite):
        raise UsageError("resume: needs the directory of the sweep, and no overwrite")
    if halving is not None and (not isinstance(halving, int) or halving < 1):
        raise UsageError(f"halving {halving!r}: must be a round, a whole number from 1 on")
    refuse_metric(metric)
    make_model = _maker(model)
    folder = Path(directory or default_directory("sweep_python")).expanduser().absolute()
    if (folder / "config.json").exists():
        raise UsageError(f"directory {folder}: holds a run; name another directory for the sweep")
    if (folder / SWEEP_FILE).exists() and not (resume or overwrite):
        raise UsageError(f"directory {folder}: holds a sweep already; give resume=True or overwrite=True")

    def config_of(values: Values) -> RunConfig:
        own = {name: value for name, value in values.items() if name in arguments}
        others = {name: value for name, value in values.items() if name not in arguments}
        name = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "function")
        given = {**arguments, **own}
        config = run_config({**settings, **others}, model=name, train=train, directory=folder, **given)
        check(config)
        return config

    runs = make_runs(folder, _combinations(over, arguments), config_of, yes=True)
    data = data_set(train, test, loss, runs[0].config)
    ranks, machine = LaunchInfo.from_environment(), runs[0].config.machine
    device = resolve_device(machine.device, ranks)
    with (
        preserve_torch_flags(),
        connect(ranks, url=machine.dist_url, timeout=machine.timeout, device=device) as world,
        ExitStack() as resources,
    ):
        command = ["fastlocal.sweep"]
        files = resources.enter_context(
            closing(SweepDirectory(folder, "python", command, runs, writes=world.is_rank0, overwrite=overwrite))
        )
        world.all_gather_object(None, "the directory of the sweep")
        console = resources.enter_context(closing(SweepConsole(files, runs, shows=progress and world.is_rank0)))
        builder = _PythonRuns(make_model, data, loss, partition, world, resume=resume)
        choice = None if halving is None else Halving(halving, metric)
        train_sweep(runs, builder, files, world, console, halving=choice, resume=resume, overwrite=overwrite)
        if world.is_rank0:
            write_tables(folder)
        world.all_gather_object(None, "the tables of the sweep")
    found = read_sweep(folder)
    return Sweep(folder, _dictionaries(results(found)), _dictionaries(summary(found)))


class _PythonRuns:
    """Builds the runs of the user's own module on the user's own samples; see sweeps.group.Builder."""

    def __init__(
        self,
        make_model: Callable[[int], nn.Module],
        data: DataSet,
        loss: Loss | None,
        partition: Any,
        world: World,
        *,
        resume: bool,
    ) -> None:
        self._make_model, self._data, self._loss, self._world = make_model, data, loss, world
        self._partition = partition if isinstance(partition, Partition) else None
        self._resume = resume

    def build(self, run: SweepRun, *, stored_partition: Path | None, replicas: int) -> PreparedRun:
        config = run.config
        if self._resume:
            config = with_stored_settings(config, Path(str(config.log.log_pth)), fill_in=True)
        model = self._make_model(config.machine.seed)
        return build_run(
            config,
            self._data,
            lambda: copy_model(model),
            self._loss or cross_entropy,
            model_flag=f"model {type(model).__name__}",
            world=self._world,
            user_module=model,
            partition=self._partition,
            stored_partition=stored_partition,
            replicas=replicas,
        )

    def make_module(self, run: SweepRun, base: PreparedRun) -> Callable[[], nn.Module]:
        return lambda: copy_model(self._make_model(run.config.machine.seed))


def _maker(model: Any) -> Callable[[int], nn.Module]:
    """Return a function of the seed that makes the start module, and check one of them."""
    if isinstance(model, nn.Module) or not callable(model):
        check_model(model)
        return lambda seed: model

    def make(seed: int) -> nn.Module:
        made = model(seed)
        check_model(made)
        return typing.cast(nn.Module, made)

    return make


def _combinations(over: Any, arguments: Mapping[str, Any]) -> list[Values]:
    """Return the values of every run; raises UsageError if `over` cannot be read."""
    settings = [name for name, area in AREA_OF.items() if area != "log" and name not in (*UNSUPPORTED, *REFUSED)]
    known = [*arguments, *(name for name in settings if name not in ("model", "dataset"))]
    if isinstance(over, Mapping):
        axes = []
        for names, values in over.items():
            columns = names if isinstance(names, tuple) else (names,)
            rows = [row if isinstance(names, tuple) else (row,) for row in _listed(names, values)]
            if any(not isinstance(row, tuple | list) or len(row) != len(columns) for row in rows):
                raise UsageError(f"over {names}: needs a tuple of {len(columns)} values for each run")
            found = {name: [_plain(name, row[place]) for row in rows] for place, name in enumerate(columns)}
            axes.append(join_columns(found, "over"))
        runs = grid(axes) if axes else []
    elif isinstance(over, Sequence) and all(isinstance(row, Mapping) and row for row in over):
        if any({*row} != {*over[0]} for row in over):
            raise UsageError("over: gives its runs other arguments; give every run the same")
        runs = [{name: _plain(name, value) for name, value in row.items()} for row in over]
    else:
        raise UsageError("over: must be {argument: values}, or a list of {argument: value}")
    for name in dict.fromkeys(name for run in runs for name in run):
        if name not in known:
            raise UsageError(f"over {name}: cannot be swept{nearest(str(name), known)}")
    return runs


def _listed(names: Any, values: Any) -> list[Any]:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise UsageError(f"over {names}: must be a list of values, not {values!r}")
    return list(values)


def _plain(name: Any, value: Any) -> Any:
    """Return a value as JSON holds it: numbers of other libraries become Python's."""
    value = value.item() if hasattr(value, "item") and not inspect.isclass(value) else value
    value = str(value) if isinstance(value, Path) else value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UsageError(f"over {name}: values are numbers, texts, True, False or None, not a {type(value).__name__}")


def _dictionaries(table: Table) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]
