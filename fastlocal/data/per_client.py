"""Training samples that come client by client, from Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from ..common.errors import UsageError
from ..params.losses import Loss
from .from_python import make_split
from .partition import Partition
from .types import MapSplit, Split


@dataclass(frozen=True)
class PerClient:
    """The samples of each client: pairs (inputs [n, ...], targets [n, ...]), or Datasets."""

    parts: tuple[Any, ...]


def per_client(parts: Sequence[Any]) -> PerClient:
    """Mark training samples as those of one client each, for `fastlocal.train(train=...)`.

    Args:
        parts: One pair (inputs [n, ...], targets [n, ...]) of tensors or arrays, or one map-style Dataset, per client;
            all pairs or all Datasets. The clients may have any numbers of samples above 0.

    Raises:
        ValueError: There is no client.
    """
    parts = tuple(parts)
    if not parts:
        raise UsageError("per_client: there is no client; give one pair or Dataset per client")
    return PerClient(parts)


def join(samples: PerClient, loss: Loss) -> tuple[Split | MapSplit, Partition]:
    """Return the samples of all clients as one split, and who owns them.

    Args:
        samples: The clients' samples.
        loss: The loss, which decides whether targets are classes.

    Raises:
        UsageError: The samples of a client are unusable or unlike those of the first.
    """
    splits = [make_split(f"train, client {number}", part, loss) for number, part in enumerate(samples.parts)]
    kinds = {type(split) for split in splits}
    if len(kinds) > 1:
        raise UsageError("train: some clients have pairs of tensors and others Datasets; give all of one kind")
    for number, split in enumerate(splits):
        if split.sample_shape != splits[0].sample_shape:
            shapes = f"{list(split.sample_shape)}, of client 0 {list(splits[0].sample_shape)}"
            raise UsageError(f"train, client {number}: samples have shape {shapes}; all must be alike")
    sizes = np.array([len(split) for split in splits], dtype=np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    meta = {"procedure": "natural", "samples": int(sizes.sum())}
    partition = Partition(np.arange(sizes.sum()), offsets, None, meta)
    if isinstance(splits[0], MapSplit):
        labels = splits[0].labels
        return MapSplit.from_dataset(ConcatDataset([split.dataset for split in splits]), labels=labels), partition  # type: ignore[union-attr]
    tensors = [split for split in splits if isinstance(split, Split)]
    inputs, targets = _join("inputs", [s.inputs for s in tensors]), _join("targets", [s.targets for s in tensors])
    return dataclasses.replace(tensors[0], inputs=inputs, targets=targets), partition


def _join(what: str, parts: Sequence[Tensor]) -> Tensor:
    for number, part in enumerate(parts):
        if part.dtype != parts[0].dtype or part.shape[1:] != parts[0].shape[1:]:
            unlike = f"{part.dtype} {list(part.shape[1:])}, of client 0 {parts[0].dtype} {list(parts[0].shape[1:])}"
            raise UsageError(f"train, client {number}: {what} are {unlike}; all must be alike")
    return torch.cat(list(parts))
