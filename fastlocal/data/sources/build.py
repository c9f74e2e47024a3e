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


def make_source(split: AnySplit, config: SourceConfig, *, augment: bool) -> Source:
    """Build the source of a split.

    Args:
        split: The split.
        config: Settings of the source.
        augment: Augment the samples.

    Raises:
        UsageError: The source cannot read the split, or is not installed.
    """
    if config.kind == "resident" and not isinstance(split, MapSplit):
        from .resident import ResidentSource

        return ResidentSource(
            split,
            mean=config.mean,
            std=config.std,
            augment=augment,
            seed=config.seed,
            device=config.device,
            dtype=config.dtype,
        )
    return _streaming(split, config, augment=augment)


def _streaming(split: AnySplit, config: SourceConfig, *, augment: bool) -> StreamingSource:
    """Build a decoding source of kind torch, ffcv or dali."""
    try:
        if isinstance(split, Split):
            split = _as_single_samples(split, images=config.mean is not None)
        samples, layout = _map(split) if isinstance(split, MapSplit) else _images(split, config.seed, augment)
    except BadSample as bad:
        raise UsageError(f"{bad}; replace or remove it") from None
    source = StreamingSource(
        _engine(samples, layout, config),
        layout,
        mean=config.mean,
        std=config.std,
        device=config.device,
        dtype=config.dtype,
        prefetch=config.prefetch,
        drawer=samples if isinstance(samples, Cropper) else SampleKeys(config.seed),
        on_bad_sample=config.on_bad_sample,
        substitutes=config.substitutes,
    )
    if isinstance(samples, MapSplit) and samples.randomness is not None:
        try:
            refuse_unrepeatable(source, samples.dataset)
        except BaseException:
            source.close()
            raise
    return source


def _as_single_samples(split: Split, *, images: bool) -> StoredSplit | MapSplit:
    """Convert tensors to samples that are read one by one."""
    if images:
        return StoredSplit(ArrayImages(split.inputs), split.targets, crop_size=None)
    inputs, targets = (split.inputs.long(), split.targets.long()) if split.tokens else (split.inputs, split.targets)
    return MapSplit.from_dataset(TensorDataset(inputs, targets))


def _map(split: MapSplit) -> tuple[MapSplit, Layout]:
    inputs, target = split.first
    return split, Layout(len(split), inputs.shape, inputs.dtype, None, target.shape, target.dtype, channels_last=False)


def _images(split: StoredSplit, seed: int, augment: bool) -> tuple[Cropper, Layout]:
    if split.crop_size is None:
        augmentation = Augmentation("crop" if augment else "none")
    else:
        augmentation = Augmentation("resized_crop" if augment else "centre_crop", split.crop_size)
    cropper = Cropper(split.images, augmentation, seed)
    height, width = augmentation.output(*cropper.first_size())
    return cropper, Layout(len(split), (height, width, split.images.channels), np.dtype(np.uint8), split.targets)


def _engine(samples: Cropper | MapSplit, layout: Layout, config: SourceConfig) -> Engine:
    if isinstance(samples, MapSplit) or config.kind == "torch":
        from .torch_workers import TorchWorkers

        return TorchWorkers(samples, config.workers)
    height, width, channels = layout.sample_shape
    if config.kind == "dali":
        try:
            from .dali_stream import DaliStream
        except (ImportError, OSError) as error:  # a missing system library may be either
            raise UsageError(f"--source dali: DALI cannot be imported ({error}); {install_hints.DALI}") from None
        device = config.device.index or 0 if config.device.type == "cuda" else None
        return DaliStream(samples, (height, width, channels), config.workers, device)
    assert config.kind == "ffcv" and isinstance(samples.images, BetonImages), "choose_kind refuses others"
    try:
        from .ffcv_stream import FfcvStream
    except (ImportError, OSError) as error:
        raise UsageError(f"--source ffcv: FFCV cannot be imported ({error}); {install_hints.FFCV}") from None
    path, field = str(samples.images.path), samples.images.image_field
    return FfcvStream(path, field, samples, (height, width, channels), config.workers)
