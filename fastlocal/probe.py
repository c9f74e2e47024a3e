"""What a module can do, found out by one small forward and backward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .errors import UsageError
from .layout import ParamLayout
from .losses import Loss
from .precision import Numerics


@dataclass(frozen=True)
class Probe:
    """labels: whether outputs are [batch, classes] for integer targets [batch], so that accuracy means something
    random: whether the forward pass draws random numbers
    unused: names of parameters that the loss does not depend on
    no_vmap: what keeps vmap from taking the module, or None
    """

    labels: bool
    random: bool
    unused: tuple[str, ...]
    no_vmap: str | None


def probe(
    module: nn.Module, layout: ParamLayout, loss: Loss, inputs: Tensor, targets: Tensor, numerics: Numerics, flag: str
) -> Probe:
    """Run one batch through a module in training mode; random states are left as they were.

    inputs, targets: one batch        flag: what the user set, for the message
    Raises UsageError where the module or the loss does not take the batch.
    """
    row = layout.flatten(dict(module.named_parameters())).requires_grad_()

    def forward(row: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with numerics.autocast():
            outputs = functional_call(module, layout.views(row), (inputs,))
        return loss(numerics.full(outputs), targets), outputs

    devices = [numerics.device] if numerics.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        before = _random_state(numerics.device)
        parameters = {name: value.detach().requires_grad_() for name, value in layout.views(row).items()}
        try:
            with numerics.autocast():
                outputs = functional_call(module, parameters, (inputs,))
            value = loss(numerics.full(outputs), targets)
            grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError) as error:
            raise UsageError(f"{flag}: does not take a batch of shape {tuple(inputs.shape)}: {_line(error)}") from error
        if value.dim():
            raise UsageError(f"loss: returns shape {tuple(value.shape)}; it must return one number per batch")
        random = not torch.equal(before, _random_state(numerics.device))
        no_vmap = None
        try:
            stacked = vmap(forward, randomness="different")
            losses, _ = stacked(*(value.expand(2, *value.shape) for value in (row, inputs, targets)))
            torch.autograd.grad(losses.sum(), row)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            no_vmap = _line(error)
    return Probe(
        labels=not targets.is_floating_point() and targets.dim() == 1 and outputs.dim() == 2,
        random=random,
        unused=tuple(name for name, grad in zip(parameters, grads, strict=True) if grad is None),
        no_vmap=no_vmap,
    )


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
