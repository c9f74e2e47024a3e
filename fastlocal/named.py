"""Runs whose data set and model are named, as on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from .checkpoint import load_strictly, read_state
from .config import RunConfig
from .data import datasets
from .data.types import DataSet
from .losses import cross_entropy
from .models import build
from .resolve import resolve_device
from .run import Prepared, prepare


def load_data(config: RunConfig, message: Callable[[str], None]) -> DataSet:
    """The data set that the flags name."""
    data = config.data
    return datasets.load(
        data.dataset,
        data_pth=data.data_pth,
        train_pth=data.train_pth,
        val_pth=data.val_pth,
        mean=data.mean,
        std=data.std,
        seed=config.machine.seed,
        workers=data.nw,
        image_size=data.image_size,
        message=message,
    )


def make_model(config: RunConfig, data: DataSet, state: dict[str, Tensor] | None, flag: str, path: Path) -> nn.Module:
    """The model that the flags name, for the images and classes of `data`, with the weights `state` if given.

    flag, path: where `state` comes from, for messages
    """
    assert data.classes is not None
    _, channels, height, width = data.train.inputs.shape
    classes = data.classes
    if state is not None and data.name == "npz":
        classes = max(classes, _classes(state))
    module = build(
        config.model.model,
        in_channels=channels,
        classes=classes,
        image_size=(height, width),
        n_groups=config.model.n_groups,
        seed=config.machine.seed,
    )
    if state is not None:
        load_strictly(module, state, path, flag)
    return module


def prepare_named(config: RunConfig, message: Callable[[str], None]) -> Prepared:
    """A run of a named model on a named data set, ready to start.

    message: takes one line for a person while data are read
    """
    resolve_device(config.machine.device)
    path = Path(config.model.resume_pth or "").expanduser()
    state = None if config.model.resume_pth is None else read_state(path, "--resume-pth")
    data = load_data(config, message)
    return prepare(
        config,
        data,
        lambda: make_model(config, data, state, "--resume-pth", path),
        cross_entropy,
        model_flag=f"--model {config.model.model}",
    )


def _classes(state: dict[str, Tensor]) -> int:
    """Outputs of the last matrix in a state_dict: the classes of the model that it was saved from."""
    matrices = [value for value in state.values() if value.dim() == 2]
    return matrices[-1].shape[0] if matrices else 0
