"""Runs from the command line: load the named data set, make the named model, build the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint.model_file import load_strictly, read_state
from ..common.errors import UsageError
from ..common.interrupts import defer_signals
from ..config.schema import RunConfig
from ..data import datasets
from ..data.labels import refuse_empty_classes
from ..data.types import DataSet, Split
from ..distributed.ranks import LaunchInfo
from ..distributed.world import World
from ..models import build, build_for_tokens, refuse_unknown
from ..params.losses import Loss, cross_entropy, token_cross_entropy
from .build import PreparedRun, build_run
from .resolve import resolve_device

PUBLISHED = {
    "cifar10": (50_000, 10_000, (3, 32, 32), 10),
    "cifar100": (50_000, 10_000, (3, 32, 32), 100),
    "fashion_mnist": (60_000, 10_000, (1, 28, 28), 10),
}
"""Sizes of published data sets: (training images, test images, shape, classes)."""
IMAGENET_SIDE = 224
MAX_CLASSES = 1_000_000


def load_data(config: RunConfig, message: Callable[[str], None]) -> DataSet:
    """Load the data set of --dataset; raise UsageError if it cannot be read."""
    data = config.data
    storable = data.dataset in datasets.STORABLE
    crops = storable and config.schedule.schedule == "epochs"
    try:
        return datasets.load(
            data.dataset,
            data_pth=data.data_pth,
            train_pth=data.train_pth,
            val_pth=data.val_pth,
            client_column=data.client_column,
            label_column=data.label_column,
            context=data.context,
            mean=data.mean,
            std=data.std,
            seed=config.machine.seed,
            workers=data.nw,
            image_size=data.image_size,
            message=message,
            verify_checksums=data.check_data,
            skip_bad=data.on_bad_sample == "skip",
            lazy=storable and data.source in ("torch", "ffcv", "dali"),
            crop_size=(data.image_size or IMAGENET_SIDE) if crops else None,
        )
    except OSError as error:
        flag = f"--data-pth {data.data_pth}: {data.dataset}" if data.data_pth else f"--dataset {data.dataset}:"
        raise UsageError(f"{flag} cannot be read ({error})") from error


def make_model(config: RunConfig, data: DataSet, state: dict[str, Tensor] | None, flag: str, path: Path) -> nn.Module:
    """Make the model of --model for the images and classes of `data`, or for its tokens.

    Args:
        config: The settings.
        data: The data set.
        state: Start weights, or None.
        flag: Flag that names the file of `state`, for messages.
        path: File of `state`, for messages.
    """
    assert data.classes is not None
    classes, settings = data.classes, config.model
    if state is not None and data.name == "npz":
        classes = max(classes, _classes(state))
    if classes > MAX_CLASSES:
        raise UsageError(
            f"--data-pth {config.data.data_pth}: labels up to {classes - 1:,} ask for a model of {classes:,} classes; "
            f"number them from 0 on, at most {MAX_CLASSES:,}"
        )
    if data.tokens:
        module = build_for_tokens(
            settings.model,
            vocabulary=classes,
            context=data.train.sample_shape[0],
            n_layers=settings.n_layers,
            width=settings.width,
            n_heads=settings.n_heads,
            seed=config.machine.seed,
        )
    else:
        channels, height, width = data.train.sample_shape
        module = build(
            settings.model,
            in_channels=channels,
            classes=classes,
            image_size=(height, width),
            n_groups=settings.n_groups,
            seed=config.machine.seed,
        )
    if state is not None:
        if any(value.dtype == torch.float64 for value in state.values()):
            module.double()  # a run in fp64 starts from the exact weights
        load_strictly(module, state, path, flag)
    return module


def loss_of(data: DataSet) -> Loss:
    """Return the loss of the named models: cross-entropy, of tokens over all places."""
    return token_cross_entropy if data.tokens else cross_entropy


def run_from_config(
    config: RunConfig,
    message: Callable[[str], None],
    *,
    dry_run: bool = False,
    world: World | None = None,
    stored_partition: Path | None = None,
    data: DataSet | None = None,
    replicas: int = 1,
) -> PreparedRun:
    """Build the run of a named model on a named data set.

    Args:
        config: The settings.
        message: Takes one log line while data are read.
        dry_run: Whether to skip reading published data sets and timing executors; the run cannot train then.
        world: The processes of the run; None for one.
        stored_partition: File with the partition of a run that continues, or None.
        data: The data set, if it is loaded already.
        replicas: Number of runs like this one that train together, for the choice of an executor.
    """
    resolve_device(config.machine.device, world.ranks if world else LaunchInfo())
    refuse_unknown(config.model.model)
    path = Path(config.model.resume_pth or "").expanduser()
    state = None if config.model.resume_pth is None else read_state(path, "--resume-pth")
    if dry_run and config.data.dataset in PUBLISHED:
        data = _outline(config)
    elif data is None:
        data = load_data(config, message)
        refuse_empty_classes(data, data_pth=config.data.data_pth, train_pth=config.data.train_pth)
    samples = data
    untimed = config.with_values(tune_seconds=0.0) if dry_run else config
    with defer_signals():
        prepared = build_run(
            untimed,
            data,
            lambda: make_model(config, samples, state, "--resume-pth", path),
            loss_of(data),
            model_flag=f"--model {config.model.model}",
            world=world,
            stored_partition=stored_partition,
            replicas=replicas,
        )
    if dry_run and config.machine.executor == "auto" and config.machine.tune_seconds:
        note = f"{prepared.config.machine.executor} is by rule; a run that is long enough times other executors first"
        return dataclasses.replace(prepared, notes=(*prepared.notes, note))
    return prepared


def _outline(config: RunConfig) -> DataSet:
    """Return a published data set with its sizes and balanced labels, and without its memory: one image, expanded."""
    n_train, n_test, shape, classes = PUBLISHED[config.data.dataset]
    for flag, values in (("--mean", config.data.mean), ("--std", config.data.std)):
        if values is not None and len(values) != shape[0]:
            raise UsageError(f"{flag} takes {shape[0]} value(s), one per channel; got {len(values)}")
    image = torch.zeros(1, *shape, dtype=torch.uint8)
    train, test = (Split(image.expand(n, *shape), torch.arange(n) % classes) for n in (n_train, n_test))
    half = (0.5,) * shape[0]
    return DataSet(config.data.dataset, train, test, classes=classes, mean=half, std=half)


def _classes(state: dict[str, Tensor]) -> int:
    """Return the rows of the last matrix in a state_dict, which are the classes of its model."""
    matrices = [value for value in state.values() if value.dim() == 2]
    return matrices[-1].shape[0] if matrices else 0
