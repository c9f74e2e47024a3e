"""Measure the bytes that a forward pass saves for the backward pass, in small passes."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.func import vmap

from ..common.errors import one_line
from ..executors.base import LocalProblem
from ..executors.forward import Forward
from ..executors.tuning.conv_strategy import Stacking, Strategies, convolutions
from ..executors.tuning.conv_timing import called_layers
from ..module_checks.plain_steps import FAILURES

_log = logging.getLogger(__name__)
FEW, MORE = 2, 4
"""Samples of the two measured passes."""


@dataclass(frozen=True)
class Activations:
    """Bytes that one client's forward pass saves for the backward pass: fixed + per_sample * batch.

    Attributes:
        fixed: Bytes that do not depend on the batch.
        per_sample: Bytes per sample.
        largest: Bytes per sample of the largest saved tensor.
    """

    fixed: int
    per_sample: int
    largest: int


def activations(problem: LocalProblem, *, stacked: bool, strategies: Strategies) -> Activations:
    """Measure activations in two forward passes of one client; random states are restored.

    Args:
        problem: The local step.
        stacked: Whether clients step as one stack.
        strategies: Strategies of the convolutions of a stack.
    """
    columns = _columns(problem, strategies) if stacked else 0
    stacking = Stacking(problem.module, strategies)
    forward_pass = Forward(problem, stacking.module)
    zero = torch.zeros((), dtype=torch.int64, device=problem.numerics.device)
    row = problem.layout.flatten(dict(problem.module.named_parameters())).unsqueeze(0).requires_grad_()

    def forward(row: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        values = problem.layout.views(row) | {name: value.clone() for name, value in problem.state.items()}
        return forward_pass(values, inputs, targets, zero, zero)[0]

    def saved_bytes(samples: int) -> tuple[int, int]:
        """Return the bytes of all saved tensors and of the largest."""
        batch = problem.source.read_range(0, samples)
        inputs, targets = (_repeated(part, samples).unsqueeze(0) for part in (batch.inputs, batch.targets))
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() != row.untyped_storage().data_ptr():
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            if stacked:
                with stacking.mode():
                    losses = vmap(forward, randomness="different")(row, inputs, targets)
            else:
                losses = forward(row[0], inputs[0], targets[0])
        del losses
        return sum(sizes.values()), max(sizes.values(), default=0)

    device = problem.numerics.device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            few, _ = saved_bytes(FEW)
            more, largest = saved_bytes(MORE)
    except FAILURES as error:  # for example, torch.func transforms in the module do not allow hooks on saved tensors
        _log.info("activations are not predicted: %s", one_line(error))
        return Activations(0, 0, columns)
    per_sample = max(more - few, 0) // (MORE - FEW)
    return Activations(max(few - FEW * per_sample, 0), per_sample, max(largest // MORE, columns))


def _columns(problem: LocalProblem, strategies: Strategies) -> int:
    """Return the bytes per sample of the largest im2col matrix, which is not among the saved tensors."""
    by_layer = dict.fromkeys(convolutions(problem.module), strategies) if isinstance(strategies, str) else strategies
    if "im2col" not in by_layer.values():
        return 0
    item = (problem.numerics.autocast_dtype or problem.numerics.dtype).itemsize
    layers = called_layers(problem, batch=1).items()
    return max((item * layer.columns for name, layer in layers if by_layer.get(name) == "im2col"), default=0)


def _repeated(rows: Tensor, samples: int) -> Tensor:
    """Return `samples` rows, repeating them if there are fewer."""
    return rows[torch.arange(samples, device=rows.device) % len(rows)]
