"""Bytes that a forward pass keeps for the backward pass, counted in small passes."""

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
"""Samples of the passes in which activations are counted."""


@dataclass(frozen=True)
class Activations:
    """Bytes that one client's forward pass keeps for the backward pass: fixed + per_sample * batch.

    largest: bytes per sample of the largest of them
    """

    fixed: int
    per_sample: int
    largest: int


def activations(problem: LocalProblem, *, stacked: bool, strategies: Strategies) -> Activations:
    """Counted in forward passes of one client with few samples; random states are left as they were."""
    columns = _columns(problem, strategies) if stacked else 0
    stacking = Stacking(problem.module, strategies)
    one = Forward(problem, stacking.module)
    nobody = torch.zeros((), dtype=torch.int64, device=problem.numerics.device)
    row = problem.layout.flatten(dict(problem.module.named_parameters())).unsqueeze(0).requires_grad_()

    def forward(row: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        values = problem.layout.views(row) | {name: value.clone() for name, value in problem.state.items()}
        return one(values, inputs, targets, nobody, nobody)[0]

    def kept(samples: int) -> tuple[int, int]:
        batch = problem.source.read_range(0, samples)
        inputs, targets = (_repeated(part, samples).unsqueeze(0) for part in (batch.inputs, batch.targets))
        found: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() != row.untyped_storage().data_ptr():
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            if stacked:
                with stacking.mode():
                    losses = vmap(forward, randomness="different")(row, inputs, targets)
            else:
                losses = forward(row[0], inputs[0], targets[0])
        del losses
        return sum(found.values()), max(found.values(), default=0)

    device = problem.numerics.device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            few, _ = kept(FEW)
            more, largest = kept(MORE)
    except FAILURES as error:  # as of transforms of torch.func within, which no hook on saved tensors goes with
        _log.info("activations are not predicted: %s", one_line(error))
        return Activations(0, 0, columns)
    per_sample = max(more - few, 0) // (MORE - FEW)
    return Activations(max(few - FEW * per_sample, 0), per_sample, max(largest // MORE, columns))


def _columns(problem: LocalProblem, strategies: Strategies) -> int:
    """Bytes per sample of the largest matrix that a convolution by im2col makes, which no saved tensor shows."""
    by_layer = dict.fromkeys(convolutions(problem.module), strategies) if isinstance(strategies, str) else strategies
    if "im2col" not in by_layer.values():
        return 0
    item = (problem.numerics.autocast_dtype or problem.numerics.dtype).itemsize
    layers = called_layers(problem, batch=1).items()
    return max((item * layer.columns for name, layer in layers if by_layer.get(name) == "im2col"), default=0)


def _repeated(rows: Tensor, samples: int) -> Tensor:
    """The rows, over again where there are fewer than `samples`."""
    return rows[torch.arange(samples, device=rows.device) % len(rows)]
