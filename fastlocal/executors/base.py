"""What every executor is given and gives back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from fastlocal import kernels

from ..common import interrupts
from ..config.schema import MachineConfig, RunConfig
from ..data.sources.base import Batch, Source
from ..models.own_tensors import Held
from ..params.client_stack import ClientStack
from ..params.losses import Loss
from ..params.param_layout import ParamLayout
from ..params.precision import Numerics
from ..telemetry.trace import span
from .read_ahead import ReadAhead
from .round_plan import RoundPlan, RoundResult

BLOCK_BYTES = 4 * 2**20
"""Inputs that one client's steps are gathered in at a time."""


@dataclass(frozen=True)
class LabelNoise:
    """Labels replaced with probability p by one of the other classes, anew at each step."""

    p: float
    classes: int
    seed: int


@dataclass(frozen=True)
class LocalProblem:
    """What a local step is, apart from how it is computed.

    module: in training mode, its BatchNorms without running statistics; executors copy what they change
    loss: (outputs of one batch, targets) -> scalar        topk: the k of the counted right predictions, or none
    clip_norm: the largest norm of a client's gradient; longer ones are scaled to it before weight decay is added
    state: what the buffers that a forward pass changes start from, by name
    held: tensors of the user's module that are reached in another way than by their names; empty where none is
    draws: whether the forward pass or the loss draws numbers that client_random covers        seed: of these draws
    ignored: the label of targets that neither the loss nor right predictions count, or None
    recomputed: paths of attributes that each forward pass computes anew
    shared: the path of one that copies of the module share, or that the loss may read from the user's module, or None
    user_module: the module that the loss may read these attributes from, or None
    remembers: whether the loss keeps something from call to call
    no_vmap: what keeps vmap from taking the module, which may then branch on values; or None
    uses_rng: whether random numbers are drawn that nothing fixes
    ahead: reads batches of a streaming source before they are asked for; None: of a resident one
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
    clip_norm: float | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    held: Held = field(default_factory=dict)
    draws: bool = False
    seed: int = 0
    ignored: int | None = None
    recomputed: frozenset[str] = frozenset()
    shared: str | None = None
    user_module: nn.Module | None = None
    remembers: bool = False
    no_vmap: str | None = None
    uses_rng: bool = False
    ahead: ReadAhead | None = None

    def stack(self, clients: int) -> ClientStack:
        """Rows of clients that begin with the module's start weights and with no momentum."""
        params = self.layout.flatten(dict(self.module.named_parameters())).repeat(clients, 1)
        state = {name: value.repeat(clients, *(1 for _ in value.shape)) for name, value in self.state.items()}
        return ClientStack(params, torch.zeros_like(params) if self.momentum else None, state)

    @property
    def counts(self) -> int:
        """What is counted of predictions: right ones for each k, then targets that are ignored where they may be."""
        return len(self.topk) + (self.ignored is not None and bool(self.topk))

    def batch(self, plan: RoundPlan, step: int, clients: slice) -> tuple[Batch, Tensor]:
        """Local step `step` of these clients of the plan: the batch, and the targets that the loss sees."""
        interrupts.check_signals()
        if self.ahead is not None:
            with span("data"):
                batch = self.ahead.batch(plan, step, clients)
                return batch, self._seen_targets(batch, plan.client_ids[clients], plan.first_step + step)
        return self._batch(plan.sample_ids[step, clients], plan.client_ids[clients], plan.first_step + step)

    def batch_at(self, sample_ids: Tensor, clients: Tensor, step: Tensor) -> tuple[Batch, Tensor]:
        """The same of a resident source, for a step that the device alone knows.

        sample_ids: int64 [clients, batch]        clients: int64 [clients]        step: int64 [], the global number
        """
        return self._batch(sample_ids, clients, step)

    def batches_of(self, plan: RoundPlan, client: int) -> Iterator[tuple[Batch, Tensor]]:
        """The same of one client, step after step and without a client axis.

        Drawn for many steps at once: on a CPU a draw of one small batch takes 0.6 ms, as long as its forward pass.
        """
        if self.ahead is not None:
            with closing(self.ahead.batches_of(plan, client)) as batches:
                for step in range(plan.local_steps):
                    interrupts.check_signals()
                    with span("data"):
                        batch = next(batches)
                        targets = self._seen_targets(batch, plan.client_ids[client], plan.first_step + step)
                    yield batch, targets
            return
        for batch, targets in self.blocks_of(plan, client):
            for step in range(len(targets)):
                interrupts.check_signals()
                yield Batch(batch.inputs[step], batch.targets[step]), targets[step]

    def blocks_of(self, plan: RoundPlan, client: int) -> Iterator[tuple[Batch, Tensor]]:
        """The same of several steps at a time: [steps, batch, ...]."""
        if self.ahead is not None:
            for batch, targets in self.batches_of(plan, client):
                yield Batch(batch.inputs.unsqueeze(0), batch.targets.unsqueeze(0)), targets.unsqueeze(0)
            return
        block = max(1, BLOCK_BYTES // self.source.batch_bytes(plan.sample_ids.shape[-1]))
        for begin in range(0, plan.local_steps, block):
            interrupts.check_signals()
            steps, sample_ids = plan.steps[begin : begin + block], plan.sample_ids[begin : begin + block, client]
            yield self._batch(sample_ids, plan.client_ids[client].expand_as(steps), steps)

    def _batch(self, sample_ids: Tensor, clients: Tensor, step: Tensor | int) -> tuple[Batch, Tensor]:
        with span("data"):
            batch = self.source.batch(sample_ids, clients, step)
            return batch, self._seen_targets(batch, clients, step)

    def _seen_targets(self, batch: Batch, clients: Tensor, step: Tensor | int) -> Tensor:
        if self.noise is None:
            return batch.targets
        noise = self.noise
        targets: Tensor = self._noisy_targets(
            batch.targets, p=noise.p, classes=noise.classes, seed=noise.seed, clients=clients, step=step
        )
        return targets if self.ignored is None else torch.where(batch.targets == self.ignored, self.ignored, targets)

    @functools.cached_property
    def _noisy_targets(self) -> Callable[..., Tensor]:
        return kernels.get("noisy_targets", device=self.source.device)


class Executor(Protocol):
    """Takes local steps."""

    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        """All local steps of the plan on the clients of the stack, whose buffers change in place."""
        ...


Values = Mapping[str, Any]
"""Fields of MachineConfig by name."""


class ExecutorKind:
    """What is known of an executor before there is one; those of executors/registry.py begin with this class.

    Attributes:
        name: As --executor says it.
        in_place: Whether all resident clients step at once in the rows of the stack; else each worker has a row of its
            own for the client whose turn it is.
        in_order: Whether the loss is called client after client, each step after step.
        flags: Fields of MachineConfig that are for this executor alone.
    """

    name: ClassVar[str]
    in_place: ClassVar[bool] = False
    in_order: ClassVar[bool] = False
    flags: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, problem: LocalProblem) -> None:
        """Begin."""

    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        """As Executor.run_round."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, machine: MachineConfig, problem: LocalProblem) -> Executor:
        """Make one with the settings that concern it."""
        return cls(problem)

    @classmethod
    def refusal(cls, problem: LocalProblem) -> str | None:
        """Return why it cannot train this, as the rest of a line that begins with --executor NAME; or None."""
        return None

    @classmethod
    def workers(cls, machine: MachineConfig) -> int:
        """Return how many clients step at once in rows of their own."""
        return 1

    @classmethod
    def prepare(cls, problem: LocalProblem) -> list[str]:
        """Compile what its steps use, and return log lines about what is missing."""
        return []

    @classmethod
    def options(cls, config: RunConfig, requested: MachineConfig, problem: LocalProblem) -> list[Values]:
        """Return the settings that are worth timing.

        Args:
            config: Resolved.
            requested: What the user gave, which stays.
            problem: Of the run.
        """
        return [{"executor": cls.name}]
