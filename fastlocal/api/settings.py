"""Settings and samples that Python hands over, as a RunConfig and a DataSet."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..algorithms import PYTHON, Algorithm
from ..common.errors import UsageError, nearest
from ..config.python_names import ARGUMENTS, UNSUPPORTED
from ..config.schema import AREA_OF, AREAS, RunConfig
from ..config.serialization import convert
from ..config.validation import refuse_phases
from ..data.from_python import check_normalisation, make_split
from ..data.partition import Partition
from ..data.per_client import PerClient, join
from ..data.types import DataSet, MapSplit, Split
from ..params.losses import Loss, cross_entropy


def run_config(
    settings: Mapping[str, Any],
    *,
    model: str,
    train: Any,
    clients: int,
    local_steps: int,
    batch_size: int,
    lr: float,
    rounds: int | None,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    eval_every: int,
    save_every: int,
    seed: int,
    partition: str | Path | Partition | None,
    algorithm: str | Algorithm = "fedavg",
    directory: str | Path | None,
) -> RunConfig:
    """Return the settings of a run, of which `config.validation.check` is still to be called.

    Args:
        settings: Fields of RunConfig by name.
        model: Name of the module's class.
        train: The training samples.
        clients: As the other arguments, see fastlocal.train.

    Raises:
        UsageError: A setting is unknown, of another type, or contradicts another one.
    """
    if not isinstance(clients, int) or clients < 1:
        raise UsageError(f"clients {clients!r}: must be a whole number, at least 1")
    own_clients = isinstance(train, PerClient)
    if own_clients and partition not in (None, "natural"):
        raise UsageError("partition: with per_client, samples have their clients already; give one of them")
    if not isinstance(partition, str | Path | Partition | None):
        raise UsageError(f"partition: is a {type(partition).__name__}; give a Partition (its from_lists makes one)")
    if rounds is not None and "epochs" in settings:
        raise UsageError("epochs, rounds: give one of them")
    if not isinstance(algorithm, str | Algorithm):
        raise UsageError(f"algorithm: is a {type(algorithm).__name__}; give a name or an object of fastlocal.Algorithm")
    given = isinstance(partition, Partition)
    settings = {"algorithm": algorithm if isinstance(algorithm, str) else PYTHON, **settings}
    config = convert_settings(
        settings,
        dataset="python",
        partition="python" if given else str(partition or ("natural" if own_clients else "shared")),
        model=model,
        batch_size=batch_size,
        total_batch_size=clients * batch_size if isinstance(batch_size, int) else 1,
        start_lr=None,
        client_lr=lr,
        rounds=100 if rounds is None and "epochs" not in settings else rounds,
        **{f"step{phase}": local_steps for phase in (1, 2, 3)},
        **{f"eval_freq{phase}": eval_every for phase in (1, 2, 3)},
        **{f"save_freq{phase}": save_every for phase in (1, 2, 3)},
        momentum=momentum,
        nesterov=nesterov,
        wd=weight_decay,
        seed=seed,
        log_pth=None if directory is None else str(directory),
    )
    refuse_phases(set(settings), config)
    return config


def data_set(train: Any, test: Any, loss: Loss | None, config: RunConfig) -> DataSet:
    """Make the data set of a run; raises UsageError if the samples do not fit the loss or the settings."""
    own_clients = isinstance(train, PerClient)
    samples, natural = join(train, loss or cross_entropy) if own_clients else (split("train", train, loss), None)
    data = DataSet(
        name="python",
        train=samples,
        test=split("test", test, loss),
        classes=None,
        mean=config.data.mean,
        std=config.data.std,
        natural=natural,
    )
    check_normalisation(data)
    return data


def split(name: str, samples: Any, loss: Loss | None = None) -> Split | MapSplit:
    """Make the split of a data set from tensors, arrays or a Dataset."""
    return make_split(name, samples, loss or cross_entropy)


def convert_settings(settings: Mapping[str, Any], **values: Any) -> RunConfig:
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
