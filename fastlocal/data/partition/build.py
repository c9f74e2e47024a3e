"""Partition of a training set by the name of --partition."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

from fastlocal.common.errors import UsageError, nearest

from . import procedures, published
from .arrays import label_checksum
from .checks import check_sizes
from .partition import Partition

NAMES = (*procedures.NAMES, "natural")
"""Names that `build` accepts beside a file."""
FLAGS = ("alpha", "shards_per_client", "classes_per_client", "min_client_size")
"""Parameters of procedures, each a flag of the same name."""


def build(
    name: str,
    *,
    samples: int,
    labels: Any,
    clients: int | None,
    seed: int,
    alpha: float | None = None,
    shards_per_client: int | None = None,
    classes_per_client: int | None = None,
    min_client_size: int | None = None,
    partition_as: str | None = None,
    natural: Partition | None = None,
) -> Partition:
    """Make or read the partition of a training set, and check it.

    Args:
        name: A name of NAMES, or a .npz or .json file.
        samples: Number of training samples.
        labels: Their labels, integers [samples], or None if targets are not labels.
        clients: Number of clients; None: that of the file or the data set.
        seed: Seed of the procedure.
        alpha: Concentration of Dirichlet distributions; None: the procedure's default, as below.
        shards_per_client: Shards of each client.
        classes_per_client: Classes of each client.
        min_client_size: Least number of samples of a client. A file with a smaller client is refused; smaller clients
            of a data set's own partition are left out.
        partition_as: A name of published.NAMES, whose procedure is reproduced index for index; None: ours.
        natural: The partition that the data set brings, or None.

    Raises:
        UsageError: The procedure is unknown, its parameters do not fit, or the partition fails its check.
    """
    given = {
        "alpha": alpha,
        "shards_per_client": shards_per_client,
        "classes_per_client": classes_per_client,
        "min_client_size": min_client_size,
    }
    given = {key: value for key, value in given.items() if value is not None}
    flag = f"--partition {name}"
    if name in procedures.NAMES:
        parts = _partition(name, samples, labels, clients, seed, given, partition_as)
    else:
        for key in (key for key in given if key != "min_client_size"):
            raise UsageError(f"--{key.replace('_', '-')} {given[key]}: means nothing with {flag}")
        if partition_as is not None:
            raise UsageError(f"--partition-as {partition_as}: means nothing with {flag}; it takes a procedure")
        if name == "natural":
            parts = _own(natural, min_client_size)
        elif Path(name).suffix or "/" in name or Path(name).exists():
            parts = Partition.load(name, samples=samples, flag=flag)
        else:
            close = nearest(name, ("shared", *NAMES))
            known = f"shared, {', '.join(NAMES)}, and .npz or .json files"
            raise UsageError(f"{flag}: is unknown{close}; known are {known}")
        if clients is not None and clients != parts.clients:
            raise UsageError(f"{flag}: has {parts.clients} clients, and {clients} were asked for; leave the number out")
    parts.check(samples, labels, flag=flag)
    if min_client_size is not None:
        check_sizes(parts, min_client_size, flag, "leave such clients out")
    return parts


def _partition(
    name: str,
    samples: int,
    labels: Any,
    clients: int | None,
    seed: int,
    given: dict[str, Any],
    partition_as: str | None,
) -> Partition:
    """Run a procedure."""
    flag = f"--partition {name}"
    function = procedures.get(name) if partition_as is None else published.get(partition_as, name)
    parameters = inspect.signature(function).parameters
    for key in given:
        if key not in parameters:
            with_as = "" if partition_as is None else f" --partition-as {partition_as}"
            raise UsageError(f"--{key.replace('_', '-')} {given[key]}: means nothing with {flag}{with_as}")
    if clients is None:
        raise UsageError(f"{flag}: give the number of clients")
    by_label = "labels" in parameters
    if by_label and labels is None:
        raise UsageError(f"{flag}: needs labels, and the targets of this data set are none; use iid or quantity")
    parts: Partition = function(labels if by_label else samples, clients=clients, seed=seed, **given)
    return dataclasses.replace(parts, meta={**parts.meta, "checksum": parts.meta["checksum"] or label_checksum(labels)})


def _own(natural: Partition | None, least: int | None) -> Partition:
    """Return the data set's own partition, without the clients that have fewer than `least` samples."""
    if natural is None:
        raise UsageError(
            "--partition natural: this data set has no clients; leaf, csv, parquet, flower, hdf5, client_folders and "
            "text do"
        )
    return natural if least is None else natural.without_small(least)
