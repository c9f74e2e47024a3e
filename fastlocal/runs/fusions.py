"""Count the operations of a local step that one kernel serves together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import vmap

from ..config.schema import RunConfig
from ..executors.base import LocalProblem
from ..executors.forward import Forward
from ..executors.tuning.conv_strategy import Stacking, parse_strategies
from ..kernels.functional import settled
from ..module_checks.plain_steps import FAILURES


def fusions(config: RunConfig, problem: LocalProblem) -> Mapping[str, int]:
    """Return how often a stacked local step fuses what, in a forward pass of one client; random states are restored.

    Args:
        config: The resolved settings.
        problem: The local step.
    """
    device = problem.numerics.device
    if config.machine.executor != "stacked" or config.machine.compile:
        return {}
    stacking = Stacking(problem.module, parse_strategies(config.machine.conv_strategy, problem.module, device))
    forward_pass = Forward(problem, stacking.module)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    row = problem.layout.flatten(dict(problem.module.named_parameters())).unsqueeze(0).requires_grad_()

    def forward(row: Tensor, inputs: Tensor) -> Tensor:
        values = problem.layout.views(row) | {name: value.clone() for name, value in problem.state.items()}
        outputs: Tensor = settled(forward_pass.outputs(values, inputs, zero, zero))
        return outputs

    batch = problem.source.read_range(0, 2)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), stacking.mode() as mode:
            vmap(forward, randomness="different")(row, batch.inputs.unsqueeze(0))
    except FAILURES:
        return {}
    return mode.deferred.fused


def table(found: Mapping[str, int]) -> str:
    """Return a table with the fusions that serve most first."""
    if not found:
        return "fused: nothing (docs/profiling.md says what is fused on a GPU)"
    width = max(len(name) for name in found)
    lines = [f"{'fused':<{width}}  per local step"]
    lines += [f"{name:<{width}}  {number:>14}" for name, number in sorted(found.items(), key=lambda item: -item[1])]
    return "\n".join(lines)
