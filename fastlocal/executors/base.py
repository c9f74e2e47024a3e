"""The local step as a value."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastlocal import kernels

from ..algorithms import AlgorithmState
from ..common import interrupts
from ..data.sources.base import Batch, Source
from ..data.sources.resident import ResidentSource
from ..models.own_tensors import TensorNames
from ..params.client_optimizer import AdamW, start_moments
from ..params.client_stack import ClientStack, repeated
from ..params.correction import CorrectionTerms
from ..params.label_noise import LabelNoise
from ..params.losses import Loss
from ..params.param_layout import ParamLayout
from ..params.precision import Numerics
from ..telemetry.trace import span
from .read_ahead import ReadAhead
from .round_plan import SHARED, RoundPlan, RowValues

if TYPE_CHECKING:
    pass

BLOCK_BYTES = 4 * 2**20
"""Inputs of one client that are gathered at a time, for several local steps."""


@dataclass(frozen=True)
class LocalProblem:
    """A local step, independent of the executor.

    Attributes:
        module: The module in training mode; its BatchNorms have no running statistics. Executors copy it.
        layout: Layout of its trained parameters.
        source: The training samples.
        loss: (outputs of one batch, targets) -> scalar.
        topk: The k of the counted correct predictions; empty if the targets are not labels.
        places: Number of targets of a sample: its tokens, else 1.
        noise: Label noise, or None.
        adamw: AdamW of the clients; None for SGD.
        clip_norm: Maximum norm of a client's gradient, applied before weight decay is added; or None.
        state: {name: start value} of the buffers that a forward pass changes.
        tensor_names: Names by id of the user's tensors, if the loss or a hook refers to them directly; else empty.
        draws: Whether the forward pass or the loss draws random numbers that client_random covers.
        seed: Seed of these draws.
        ignored: Label of targets that neither the loss nor the accuracy counts, or None.
        recomputed: Paths of the attributes that each forward pass recomputes.
        shared: Path of a recomputed attribute that copies of the module share, or that the loss may read from the
            user's module; or None.
        user_module: The module from which the loss may read recomputed attributes, or None.
        stateful_loss: Whether the loss keeps state between calls.
        no_vmap: Why vmap cannot take the module, or None. Such a module may branch on values.
        uses_rng: Whether the module draws random numbers that no client's seed fixes.
        ahead: Reads batches of a streaming source ahead; None for a resident source.
        correction: Terms that the run's algorithm adds to the gradients.
        algorithm: State of the algorithm before the first round, that of one client.
    """

    module: nn.Module
    layout: ParamLayout
    source: Source
    loss: Loss
    topk: tuple[int, ...]
    noise: LabelNoise | None
    momentum: float
    nesterov: bool
    weight_decay: float
    numerics: Numerics
    adamw: AdamW | None = None
    clip_norm: float | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    tensor_names: TensorNames = field(default_factory=dict)
    draws: bool = False
    seed: int = 0
    ignored: int | None = None
    places: int = 1
    recomputed: frozenset[str] = frozenset()
    shared: str | None = None
    user_module: nn.Module | None = None
    stateful_loss: bool = False
    no_vmap: str | None = None
    uses_rng: bool = False
    ahead: ReadAhead | None = None
    correction: CorrectionTerms = CorrectionTerms()
    algorithm: AlgorithmState = field(default_factory=AlgorithmState)

    def stack(self, clients: int) -> ClientStack:
        """Return rows of `clients` clients with the module's start weights and an optimizer that begins."""
        row = self.layout.flatten(dict(self.module.named_parameters()))
        start = {**self.start_moments(row), **self.state}
        params = row.repeat(clients, 1)
        return ClientStack.of(params, repeated(start, clients), self.correction.zero(params))

    def start_moments(self, row: Tensor) -> dict[str, Tensor]:
        """Return {name: start value} of the optimizer's state for a client with the parameters `row` [n_params]."""
        return start_moments(row, self.momentum, self.adamw)

    @property
    def moments(self) -> int:
        """Rows of n_params that the optimizer keeps for each client."""
        return 2 if self.adamw is not None else int(self.momentum > 0)

    @property
    def counts(self) -> int:
        """Number of counts of predictions: correct ones for each k, and ignored targets if there may be any."""
        return len(self.topk) + (self.ignored is not None and bool(self.topk))

    def batch(self, plan: RoundPlan, step: int, clients: slice, size: int | None = None) -> tuple[Batch, Tensor]:
        """Return the batch of a local step of some clients, and the targets of the loss.

        Args:
            plan: The round.
            step: The step, counted from the round's first.
            clients: Rows whose batches have one size.
            size: Its size; None for whole batches.
        """
        interrupts.check_signals()
        size = plan.batch if size is None else size
        if self.ahead is not None:
            with span("data"):
                batch = self.ahead.batch(plan, step, clients, size)
                return batch, self._seen_targets(batch, plan.client_ids[clients], plan.start + step)
        number = plan.first_step + step if isinstance(plan.first_step, int) else plan.steps[step, clients]
        ids = plan.client_ids[clients]
        return self._batch(plan.sample_ids[step, clients, :size], ids, number, plan.values.part(clients))

    def batch_at(
        self, sample_ids: Tensor, clients: Tensor, step: Tensor, values: RowValues = SHARED
    ) -> tuple[Batch, Tensor]:
        """Return the batch of a resident source for a step whose number is known on the device only.

        Args:
            sample_ids: int64 [clients, batch].
            clients: int64 [clients].
            step: int64 [] or [clients], the global number.
            values: Hyperparameters that differ between the clients.
        """
        return self._batch(sample_ids, clients, step, values)

    def batches(self, plan: RoundPlan) -> Iterator[tuple[Batch, Tensor]]:
        """Yield batch and targets of all clients, step after step, of a plan with whole batches.

        Small ones are gathered for several steps at once: of 32 clients x 8 samples one takes 0.06 ms on a CPU.
        """
        clients, here = plan.client_ids, plan.steps
        block = max(1, BLOCK_BYTES // max(1, len(clients) * self.source.batch_bytes(plan.batch)))
        if self.ahead is not None or block == 1 or plan.values.tensors:
            for step in range(plan.local_steps):
                yield self.batch(plan, step, slice(None))
            return
        for begin in range(0, plan.local_steps, block):
            sample_ids, steps = plan.sample_ids[begin : begin + block], here[begin : begin + block]
            shape = sample_ids.shape[:2]
            batch, targets = self._batch(sample_ids, clients.expand(shape), steps.view(len(steps), -1).expand(shape))
            for step in range(len(steps)):
                interrupts.check_signals()
                labels = batch.targets[step]
                own = labels if targets is batch.targets else targets[step]
                yield Batch(batch.inputs[step], labels), own

    def batches_of(self, plan: RoundPlan, client: int) -> Iterator[tuple[Batch, Tensor]]:
        """Yield batch and targets of one client, step after step, without a client axis.

        They are gathered for many steps at once: on a CPU one small batch takes 0.6 ms, as long as its forward pass.
        """
        if self.ahead is not None:
            with closing(self.ahead.batches_of(plan, client)) as batches:
                for step in range(plan.steps_of(client)):
                    interrupts.check_signals()
                    with span("data"):
                        batch = next(batches)
                        targets = self._seen_targets(batch, plan.client_ids[client], plan.start + step)
                    yield batch, targets
            return
        for batch, targets in self.blocks_of(plan, client):
            for step in range(len(targets)):
                interrupts.check_signals()
                yield Batch(batch.inputs[step], batch.targets[step]), targets[step]

    def blocks_of(self, plan: RoundPlan, client: int) -> Iterator[tuple[Batch, Tensor]]:
        """Yield batch and targets of one client for several steps at a time, [steps, batch, ...]."""
        if self.ahead is not None:
            for batch, targets in self.batches_of(plan, client):
                yield Batch(batch.inputs.unsqueeze(0), batch.targets.unsqueeze(0)), targets.unsqueeze(0)
            return
        block = max(1, BLOCK_BYTES // self.source.batch_bytes(plan.batch))
        for first, end, size in plan.equal_batches(client):
            for begin in range(first, end, block):
                interrupts.check_signals()
                here = slice(begin, min(begin + block, end))
                steps, sample_ids = plan.steps[here], plan.sample_ids[here, client, :size]
                yield self._batch(sample_ids, plan.client_ids[client].expand_as(steps), steps)

    def _batch(
        self, sample_ids: Tensor, clients: Tensor, step: Tensor | int, values: RowValues = SHARED
    ) -> tuple[Batch, Tensor]:
        with span("data"):
            if values.seed is None:
                batch = self.source.batch(sample_ids, clients, step)
            else:
                assert isinstance(self.source, ResidentSource), "rows of several runs read resident samples"
                batch = self.source.batch(sample_ids, clients, step, seed=values.seed)
            return batch, self._seen_targets(batch, clients, step, values)

    def _seen_targets(self, batch: Batch, clients: Tensor, step: Tensor | int, values: RowValues = SHARED) -> Tensor:
        if self.noise is None:
            return batch.targets
        noise = self.noise
        p = noise.p if values.noise_p is None else values.noise_p
        seed = noise.seed if values.seed is None else values.seed
        targets: Tensor = self._noisy_targets(
            batch.targets, p=p, classes=noise.classes, seed=seed, clients=clients, step=step
        )
        return targets if self.ignored is None else torch.where(batch.targets == self.ignored, self.ignored, targets)

    @functools.cached_property
    def _noisy_targets(self) -> Callable[..., Tensor]:
        return kernels.get("noisy_targets", device=self.source.device)
