"""Build the source of a split."""

from __future__ import annotations

import numpy as np
from torch.utils.data import TensorDataset

from fastlocal.common.errors import UsageError

from .. import install_hints
from ..images.arrays import ArrayImages
from ..images.beton import BetonImages
from ..transforms import Augmentation
from ..types import AnySplit, BadSample, MapSplit, Split, StoredSplit
from .base import Source
from .engine import Cropper, Engine
from .repeatable import refuse_unrepeatable
from .requests import Layout, SampleKeys
from .source_config import SourceConfig
from .streaming import StreamingSource


def make_source(split: AnySplit, reading: SourceConfig, *, augment: bool) -> Source:
    """The source of one half, whose samples are augmented where `augment` says so.

    Raises UsageError where the source cannot read it or is not installed.
    """
    if reading.kind == "resident" and not isinstance(split, MapSplit):
        from .resident import ResidentSource

        return ResidentSource(
            split,
            mean=reading.mean,
            std=reading.std,
            augment=augment,
            seed=reading.seed,
            device=reading.device,
            dtype=reading.dtype,
        )
    return _streaming(split, reading, augment=augment)


def _streaming(split: AnySplit, reading: SourceConfig, *, augment: bool) -> StreamingSource:
    """A source that decodes as `reading.kind` says: torch, ffcv or dali."""
    try:
        if isinstance(split, Split):
            split = _readable(split, images=reading.mean is not None)
        samples, layout = _map(split) if isinstance(split, MapSplit) else _images(split, reading.seed, augment)
    except BadSample as bad:
        raise UsageError(f"{bad}; replace or remove it") from None
    source = StreamingSource(
        _engine(samples, layout, reading),
        layout,
        mean=reading.mean,
        std=reading.std,
        device=reading.device,
        dtype=reading.dtype,
        prefetch=reading.prefetch,
        drawer=samples if isinstance(samples, Cropper) else SampleKeys(reading.seed),
        on_bad_sample=reading.on_bad_sample,
    )
    if isinstance(samples, MapSplit) and samples.randomness is not None:
        try:
            refuse_unrepeatable(source, samples.dataset)
        except BaseException:
            source.close()
            raise
    return source


def _readable(split: Split, *, images: bool) -> StoredSplit | MapSplit:
    """Tensors as samples that are read one by one."""
    if images:
        return StoredSplit(ArrayImages(split.inputs), split.targets, crop_size=None)
    return MapSplit.of(TensorDataset(split.inputs, split.targets))


def _map(split: MapSplit) -> tuple[MapSplit, Layout]:
    inputs, target = split.first
    return split, Layout(len(split), inputs.shape, inputs.dtype, None, target.shape, target.dtype, channels_last=False)


def _images(split: StoredSplit, seed: int, augment: bool) -> tuple[Cropper, Layout]:
    if split.crop_size is None:
        augmentation = Augmentation("crop" if augment else "none")
    else:
        augmentation = Augmentation("resized_crop" if augment else "centre_crop", split.crop_size)
    cutter = Cropper(split.images, augmentation, seed)
    height, width = augmentation.output(*cutter.first_size())
    return cutter, Layout(len(split), (height, width, split.images.channels), np.dtype(np.uint8), split.targets)


def _engine(samples: Cropper | MapSplit, layout: Layout, reading: SourceConfig) -> Engine:
    if isinstance(samples, MapSplit) or reading.kind == "torch":
        from .torch_workers import TorchWorkers

        return TorchWorkers(samples, reading.workers)
    height, width, channels = layout.sample_shape
    if reading.kind == "dali":
        try:
            from .dali_stream import DaliStream
        except (ImportError, OSError) as error:  # a missing system library may be either
            raise UsageError(f"--source dali: DALI cannot be imported ({error}); {install_hints.DALI}") from None
        device = reading.device.index or 0 if reading.device.type == "cuda" else None
        return DaliStream(samples, (height, width, channels), reading.workers, device)
    assert reading.kind == "ffcv" and isinstance(samples.images, BetonImages), "others are refused before"
    try:
        from .ffcv_stream import FfcvStream
    except (ImportError, OSError) as error:
        raise UsageError(f"--source ffcv: FFCV cannot be imported ({error}); {install_hints.FFCV}") from None
    path, field = str(samples.images.path), samples.images.image_field
    return FfcvStream(path, field, samples, (height, width, channels), reading.workers)
