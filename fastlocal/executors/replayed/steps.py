"""Replay the forward and the backward pass of stacked steps, each kind of step by its own list of operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...telemetry.trace import span
from ..base import LocalProblem
from ..round_plan import LocalStep
from .recorder import Recorder, Recording
from .simplify import simplify

PLAIN = 1
"""Steps of a kind before it is recorded: many kinds of clients with unequal numbers of samples do not come again."""
WARM_UP_STEPS = PLAIN + 2
"""Steps of a kind that are not replayed."""
MOST = 256
"""Kinds of steps that are kept."""

Step = Callable[..., Any]


class ReplayedSteps:
    """Forward and backward passes that are recorded twice and then replayed.

    They are replayed if both recordings are the same operations, on other weights and samples, and if the replay has
    the bits of the second pass, so that no result depends on when a process began. Passes of one kind have inputs of
    the same shapes, strides and dtypes.
    """

    def __init__(self) -> None:
        self._kinds: dict[Any, _Kind] = {}

    @staticmethod
    def can_replay(problem: LocalProblem) -> bool:
        """Return True if a step is a function of its inputs, without Python state and without hooks to call."""
        state = problem.state or problem.recomputed or problem.tensor_names or problem.stateful_loss or problem.uses_rng
        hooked = any(_has_hooks(module) for module in problem.module.modules())
        return problem.numerics.device.type == "cpu" and not (state or hooked) and problem.user_module is None

    def __call__(self, run: Callable[[], Any], leaves: Sequence[Tensor], step: LocalStep) -> Any:
        """Return the results of `run`, a tree of tensors.

        Args:
            run: Takes the passes.
            leaves: The parameters that it reads.
            step: The step whose samples it reads.
        """
        inputs = [*leaves, *_tensors(step)]
        kind = self._kinds.setdefault(tuple(map(_kind_of, inputs)), _Kind())
        if kind.replay is not None:
            with span("local_step"), torch.no_grad():
                return kind.replay(*inputs)
        if len(self._kinds) > MOST:
            self._kinds.pop(next(iter(self._kinds)))
        kind.calls += 1
        if kind.failed or kind.calls <= PLAIN:
            return run()
        with Recorder(inputs) as recorder:
            results = run()
        recording = recorder.finish(results)
        if kind.first is None:
            kind.first = recording
            return results
        if recording.is_same(kind.first):
            kind.replay = self._checked(recording, inputs, results)
        kind.first, kind.failed = None, kind.replay is None
        return results

    def _checked(self, recording: Recording, inputs: Sequence[Tensor], results: Any) -> Step | None:
        """Return the recorded operations as a function, or None if they have other results."""
        simplify(recording)
        expected = tree_leaves(results)
        for direct in (True, False):
            replay = recording.function(direct=direct)
            try:
                with torch.no_grad():
                    found = tree_leaves(replay(*inputs))
            except (TypeError, RuntimeError):  # arguments that no other overload takes
                if direct:
                    continue
                raise
            pairs = zip(found, expected, strict=True)
            if all(torch.equal(one, other) for one, other in pairs if isinstance(other, Tensor)):
                return replay
        return None


def _has_hooks(module: nn.Module) -> bool:
    """Return True if something is to be called in each pass of a module."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(map(len, hooks))


def _tensors(step: LocalStep) -> list[Tensor]:
    """Return what a forward pass reads of a step."""
    labels = [] if step.batch.targets is step.targets else [step.batch.targets]
    values = [value for value in (step.values.seed, step.values.noise_p) if value is not None]
    return [step.batch.inputs, step.targets, *labels, step.client_ids, step.number, *values]


class _Kind:
    """A kind of steps: the number of its calls, its first recording, and its replay."""

    def __init__(self) -> None:
        self.calls = 0
        self.first: Recording | None = None
        self.replay: Step | None = None
        self.failed = False


def _kind_of(value: Tensor) -> tuple[Any, ...]:
    return value.shape, value.stride(), value.dtype
