"""What every executor is given and gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from fastlocal import kernels

from ..data.sources.resident import Batch, ResidentSource
from ..layout import ParamLayout
from ..losses import Loss
from ..precision import Numerics
from ..stack import ClientStack


@dataclass(frozen=True)
class RoundPlan:
    """One communication round of one chunk, on the device.

    client_ids: int64 [clients]        first_step: global number of the first local step
    learning_rates: [local_steps, clients]        sample_ids: int64 [local_steps, clients, batch]
    """

    client_ids: Tensor
    first_step: int
    learning_rates: Tensor
    sample_ids: Tensor

    @property
    def local_steps(self) -> int:
        return self.sample_ids.shape[0]


@dataclass(frozen=True)
class RoundResult:
    """What a chunk's round leaves beside the changed buffers, still on the device.

    losses: [local_steps, clients] mean loss of each batch
    correct: float64 [len(topk)] right predictions of all of them, or None where targets are not labels
    """

    losses: Tensor
    correct: Tensor | None


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
    """

    module: nn.Module
    layout: ParamLayout
    source: ResidentSource
    loss: Loss
    topk: tuple[int, ...]
    noise: LabelNoise | None
    momentum: float
    nesterov: bool
    weight_decay: float
    numerics: Numerics

    def batch(self, plan: RoundPlan, step: int, clients: slice) -> tuple[Batch, Tensor]:
        """Local step `step` of these clients of the plan: the batch, and the targets that the loss sees."""
        numbers = plan.client_ids[clients]
        batch = self.source.batch(plan.sample_ids[step, clients], numbers, plan.first_step + step)
        if self.noise is None:
            return batch, batch.targets
        draw: Callable[..., Tensor] = kernels.get("noisy_targets")
        noise = self.noise
        return batch, draw(
            batch.targets,
            p=noise.p,
            classes=noise.classes,
            seed=noise.seed,
            clients=numbers,
            step=plan.first_step + step,
        )


class Executor(Protocol):
    """Takes local steps."""

    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        """All local steps of the plan on the clients of the stack, whose buffers change in place."""
        ...
