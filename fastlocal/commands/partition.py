"""fastlocal partition: share the training samples of a data set out among clients."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from ..common.errors import UsageError
from ..common.interrupts import defer_signals
from .argv import normalise, refuse_unknown
from .parser import parse_flags

if TYPE_CHECKING:
    from ..data.partition import Partition
    from ..data.types import DataSet

PLOT_SUFFIXES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class PartitionFlags:
    """Write which client owns which training samples, print statistics, and draw them.

    `fastlocal train --partition FILE` takes the file. The data set and the parameters are as in `fastlocal train`.
    """

    partition: str = "iid"
    """iid, dirichlet, dirichlet-client, shards, classes, quantity, natural (of the data set), or a file to look at"""
    out: Path | None = None
    """file to write, .npz, or .json of {client: [sample numbers]}; None: statistics alone"""
    plot: Path | None = None
    """picture to write, .png, .svg or .pdf: labels by client, and sizes"""
    overwrite: bool = False
    """replace files that are there"""
    dataset: str = "digits"
    """as in `fastlocal train`"""
    data_pth: str | None = None
    """folder or file that holds the data set"""
    train_pth: str | None = None
    """training split, if it is not below --data-pth"""
    val_pth: str | None = None
    """test split, if it is not below --data-pth"""
    client_column: str | None = None
    """column of csv or parquet that names each sample's client; None: client, if there is one"""
    label_column: str | None = None
    """column with the labels; None: label"""
    context: int = 64
    """bytes of a sample of text"""
    clients: int | None = None
    """number of clients; a file, and a data set's own partition, have theirs"""
    seed: int = 0
    """seed of the procedure"""
    alpha: float | None = None
    """concentration of dirichlet, dirichlet-client and quantity; None: the procedure's default"""
    shards_per_client: int | None = None
    """shards of each client under shards; None: 2"""
    classes_per_client: int | None = None
    """classes of each client under classes; None: 2"""
    min_client_size: int | None = None
    """least samples of a client; smaller clients of natural are left out; None: the procedure's default"""
    partition_as: Literal["flower", "niid-bench", "pfl"] | None = None
    """draw the partition index for index as this package does; None: as fastlocal does"""


def run(argv: Sequence[str]) -> int:
    """Make the partition, write what was asked for, and print its statistics."""
    words = normalise(argv)
    refuse_unknown(words, (spec.name for spec in dataclasses.fields(PartitionFlags)), "fastlocal partition")
    flags = parse_flags(PartitionFlags, "fastlocal partition", words, config=(tyro.conf.FlagConversionOff,))
    _check(flags)
    if flags.partition == "shared":
        raise UsageError("--partition shared: nobody owns samples then; name a procedure, such as iid")

    with defer_signals():
        from ..data.partition.build import build
        from ..data.partition.statistics import statistics

        draw = None if flags.plot is None else _drawing()

    data = _read(flags)
    samples, targets = len(data.train), data.train.targets
    labels = None if data.classes is None or targets is None or data.tokens else targets.numpy()
    parts = build(
        flags.partition,
        samples=samples,
        labels=labels,
        clients=flags.clients,
        seed=flags.seed,
        alpha=flags.alpha,
        shards_per_client=flags.shards_per_client,
        classes_per_client=flags.classes_per_client,
        min_client_size=flags.min_client_size,
        partition_as=flags.partition_as,
        natural=data.natural,
    )
    try:
        if flags.out is not None:
            parts.save(flags.out.expanduser())
        if flags.plot is not None and draw is not None:
            draw(parts, labels, flags.plot.expanduser(), f"{flags.dataset}, --partition {flags.partition}")
    except PermissionError as error:
        raise UsageError(f"{error.filename}: cannot be written ({error.strerror})") from None
    print("\n".join(statistics(parts, samples, labels).lines()))
    if flags.out is not None:
        print(f"fastlocal train --dataset {flags.dataset} --partition {flags.out} --rounds 100")
    return 0


def _read(flags: PartitionFlags) -> DataSet:
    """Read the data set; images that can stay on the disk do."""
    from ..data import datasets

    request = datasets.DatasetSpec(
        name=flags.dataset,
        data_pth=flags.data_pth,
        train_pth=flags.train_pth,
        val_pth=flags.val_pth,
        seed=flags.seed,
        workers=1,
        image_size=None,
        message=lambda text: print(text, file=sys.stderr),
        lazy=True,
        client_column=flags.client_column,
        label_column=flags.label_column,
        context=flags.context,
    )
    try:
        return datasets.read(request)
    except OSError as error:
        raise UsageError(f"--dataset {flags.dataset}: cannot be read ({error})") from error


def _check(flags: PartitionFlags) -> None:
    """Raise UsageError for a wrong seed and for files that cannot be written, before the data are read."""
    from ..data.partition.files import SUFFIXES

    if not 0 <= flags.seed < 2**63:
        raise UsageError(f"--seed {flags.seed}: must be 0 or more, and below 2^63")
    for flag, path, suffixes in (("--out", flags.out, SUFFIXES), ("--plot", flags.plot, PLOT_SUFFIXES)):
        if path is None:
            continue
        path = path.expanduser()
        if path.suffix not in suffixes:
            raise UsageError(f"{flag} {path}: name a file that ends in {' or '.join(suffixes)}")
        if not path.parent.is_dir():
            raise UsageError(f"{flag} {path}: there is no folder {path.parent}")
        if path.is_dir() or (path.exists() and not flags.overwrite):
            raise UsageError(f"{flag} {path}: is there already; --overwrite replaces it")


def _drawing() -> Callable[[Partition, Any, Path, str], None]:
    """Return the function that draws; raise UsageError without matplotlib."""
    try:
        from ..data.partition.matplotlib_plot import draw
    except ImportError:
        raise UsageError("--plot needs matplotlib; install it with pip install 'fastlocal[bench]'") from None
    return draw
