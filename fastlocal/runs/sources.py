"""The data sources of a run."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack, closing

from ..config.schema import RunConfig
from ..data.partition import Partition
from ..data.sources.base import Source
from ..data.sources.build import make_source
from ..data.sources.source_config import SourceConfig
from ..data.types import AnySplit, DataSet
from ..params.precision import Numerics
from .population import Population


def open_sources(
    config: RunConfig, data: DataSet, population: Population, numbers: Numerics, opened: ExitStack
) -> tuple[Source, Source, Source]:
    """Return the sources of the training, the test and the clients' held-out samples; `opened` closes them.

    Samples in memory are shared; a decoding source of held-out samples neither augments them nor reads ahead with
    those of the training.
    """
    source_config = SourceConfig(
        kind=config.data.source,
        workers=config.data.nw,
        prefetch=config.data.prefetch,
        on_bad_sample=config.data.on_bad_sample,
        mean=data.mean,
        std=data.std,
        seed=config.machine.seed,
        device=numbers.device,
        dtype=numbers.dtype,
    )

    def opened_source(split: AnySplit, owned: Partition | None, *, augment: bool) -> Source:
        own = source_config
        if owned is not None and config.data.on_bad_sample == "skip":
            own = dataclasses.replace(own, substitutes=owned.substitutes(len(data.train)))
        return opened.enter_context(closing(make_source(split, own, augment=augment)))

    source = opened_source(data.train, population.partition, augment=bool(config.data.aug))
    test = opened_source(data.test, None, augment=False)
    held_out = source
    if config.client.eval_clients is not None and not source.resident:
        held_out = opened_source(data.train, population.held_out, augment=False)
    return source, test, held_out
