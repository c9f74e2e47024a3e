"""The averaged model as a run shows it: evaluated, written and logged."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..aggregation.global_model import GlobalModel
from ..checkpoint.model_file import save_model
from ..common import interrupts
from ..common.errors import NonFiniteLoss
from ..data.sample_streams import Streams
from ..data.sources.base import BatchRequest, Source
from ..models.client_random.mode import ClientRandom
from ..schedule.cursor import TrainingCursor, TrainStats
from ..schedule.rounds import RoundSchedule
from ..telemetry.base import Logger
from .evaluation import Drawing, Evaluation


@dataclass
class Reports:
    """What becomes of the averaged model after a round.

    evaluate: the model on the test set        topk: the k of accuracies, empty where targets are not labels
    stop_on_nan: whether a non-finite loss ends the run
    module_seed: of a module that draws random numbers which nothing else fixes, or None
    draws_seed: the seed of the draws that client_random covers, or None if the model makes none
    writes: whether this process writes files        history: the lines of metrics.jsonl
    Every rank of a run does the same, so that all hold the same model; one of them writes.
    """

    averaged: GlobalModel
    source: Source
    streams: Streams
    evaluate: Callable[[Drawing], Evaluation]
    logger: Logger
    directory: Path
    bn_batches: int
    topk: tuple[int, ...]
    stop_on_nan: bool
    module_seed: int | None
    draws_seed: int | None
    writes: bool
    history: list[dict[str, Any]] = field(default_factory=list)
    _warned: bool = False

    def load_averaged(self, trained: int) -> None:
        """Bring the plain module up to the averaged row, BatchNorm re-estimated, unless it is there already.

        trained: local steps that every client has taken
        """
        if not self.averaged.loaded:
            spec = self.streams.spec
            self.seed_module(trained, spec.clients)
            with self._drawing(trained, 0):
                self.averaged.load(self._batchnorm_inputs(max(trained - 1, 0) // spec.steps_per_epoch))

    def save_latest(self, trained: int) -> None:
        """Write the averaged model to latest.pt, unless it is not finite and an earlier one is worth more."""
        self.load_averaged(trained)
        if self.averaged.is_finite() or not self.stop_on_nan:
            self.save("latest.pt", trained)

    def save(self, name: str, trained: int) -> None:
        """Write the averaged model to the file `name`."""
        self.load_averaged(trained)
        if self.writes:
            path = self.directory / name
            save_model(path, self.averaged.module.state_dict())
            self.logger.checkpoint(path)

    def report(self, planned: RoundSchedule, at: TrainingCursor) -> None:
        """Evaluate the averaged model, save it and log the line."""
        self.load_averaged(at.steps_done)
        self.seed_module(at.steps_done, self.streams.spec.clients + 1)
        with self.averaged.preserve_tensors():
            result = self.evaluate(functools.partial(self._drawing, at.steps_done + 1))
        if not (math.isfinite(result.loss) and self.averaged.is_finite()):
            self.stop_or_warn(planned, "averaged model", f"the test loss is {result.loss}")
        loss, accuracies = at.stats.mean(len(self.topk))
        at.stats = TrainStats()
        row: dict[str, Any] = {"epoch": planned.epoch, "comm_round": planned.comm_round}
        if self.topk:
            at.best_acc = max(at.best_acc, result.accuracies[0])
        row |= self._accuracies("train", accuracies) | {"train_loss": loss}
        row |= self._accuracies("val", result.accuracies) | {"val_loss": result.loss}
        row |= {"best_acc": at.best_acc if self.topk else None}
        row |= {"iter": planned.iteration, "lr": planned.learning_rate}
        self.save_latest(at.steps_done)
        if planned.save_as is not None:
            self.save(planned.save_as, at.steps_done)
        self.history.append(row)

    def stop_or_warn(self, planned: RoundSchedule, who: str, what: str) -> None:
        """Something is no longer finite: raise NonFiniteLoss, or say so once where the run is to go on."""
        where = f"round {planned.number}, {who}: {what}"
        if self.stop_on_nan:
            raise NonFiniteLoss(where)
        if self.writes and not self._warned:
            self.logger.message(f"{where}; going on (--on-nan continue), said once")
            self._warned = True

    def seed_module(self, step: int, what: int) -> None:
        """Make what the module draws itself depend on nothing that an interruption changes."""
        if self.module_seed is not None:
            mixed = (self.module_seed * 1_000_003 + step) * 1_000_003 + what
            torch.manual_seed(mixed % 2**63)
            random.seed(mixed)
            np.random.seed(mixed % 2**32)

    def _drawing(self, step: int, batch: int) -> AbstractContextManager[Any]:
        """Random numbers of a forward pass that is no client's: those of numbers that no client has."""
        if self.draws_seed is None:
            return nullcontext()
        device = self.averaged.flat_params.device
        client = torch.tensor(self.streams.spec.clients + batch, device=device)
        return ClientRandom(self.draws_seed, client, torch.tensor(step, device=device))

    def _batchnorm_inputs(self, epoch: int) -> Iterator[Tensor]:
        device = self.source.index_device
        for batch in self.source.feed(
            BatchRequest(ids.unsqueeze(0).to(device), torch.tensor([client], device=device), step)
            for ids, client, step in self.streams.epoch_batches(epoch, self.bn_batches)
        ):
            interrupts.check_signals()
            yield batch.inputs[0]

    def _accuracies(self, half: str, values: list[float] | tuple[float, ...]) -> dict[str, float | None]:
        if not self.topk:
            return {f"{half}_acc1": None}
        return {f"{half}_acc{k}": value for k, value in zip(self.topk, values, strict=True)}
