"""What a module can do, found out by one small forward and backward pass."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .errors import UsageError
from .evaluation import unknown_label
from .layout import ParamLayout
from .losses import Loss, combination
from .precision import Numerics, without_tf32

FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError)
"""What a module or a loss raises on samples that it does not take."""


@dataclass(frozen=True)
class Probe:
    """classes: outputs per sample where they are [batch, classes] for integer targets [batch], so that accuracy means
        something; else None
    random: whether the forward pass draws random numbers, from the generators of torch, Python or NumPy
    unused: names of parameters that the loss does not depend on
    no_vmap: what keeps vmap from taking the module, or None
    """

    classes: int | None
    random: bool
    unused: tuple[str, ...]
    no_vmap: str | None


def probe(
    module: nn.Module,
    layout: ParamLayout,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    numerics: Numerics,
    *,
    labels: tuple[int, int] | None,
    flag: str,
) -> Probe:
    """Run one batch through a module in training mode; random states are left as they were.

    inputs, targets: one batch        labels: lowest and highest label that must be an output's number, or None
    flag: what the user set, for the message
    Raises UsageError where the module or the loss does not take the batch.
    """
    module = copy.deepcopy(module)  # what a forward pass leaves behind in it stays here
    row = layout.flatten(dict(module.named_parameters())).requires_grad_()
    devices = [numerics.device] if numerics.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), _python_random_kept():
        before = _random_states(numerics.device)
        parameters = {name: value.detach().requires_grad_() for name, value in layout.views(row).items()}
        try:
            with numerics.autocast():
                outputs = functional_call(module, parameters, (inputs,))
            if not isinstance(outputs, Tensor):
                kind = type(outputs).__name__
                raise UsageError(f"{flag}: returns {kind}, not one tensor; wrap it in a module that returns one")
            classes = outputs.shape[1] if targets.dim() == 1 and outputs.dim() == 2 else None
            if labels is not None and classes is not None:
                _check_labels(labels, classes, flag)
            value = loss(numerics.full(outputs), targets)
            if value.dim():
                raise UsageError(f"loss: returns shape {tuple(value.shape)}; it must return one number per batch")
            grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
            found = dict(zip(parameters, grads, strict=True))
        except UsageError:
            raise
        except FAILURES as error:
            raise UsageError(f"{flag}: does not take a batch of shape {tuple(inputs.shape)}: {_line(error)}") from error
        drawn = before != _random_states(numerics.device)
        gradients = _Gradients(module, layout, loss, inputs, targets, row)
        no_vmap = gradients.fault_of_vmap(numerics, compare=not drawn)
    return Probe(
        classes=None if targets.is_floating_point() else classes,
        random=drawn,
        unused=tuple(name for name, grad in found.items() if grad is None),
        no_vmap=no_vmap,
    )


@torch.no_grad()
def try_evaluation(
    module: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, numerics: Numerics, *, flag: str
) -> None:
    """Raise UsageError where an evaluation would fail on test samples that are not like the training samples.

    inputs, targets: a few test samples        flag: what the user set, for the message
    """
    trial = copy.deepcopy(module).eval()
    try:
        with numerics.autocast():
            outputs = numerics.full(trial(inputs))
        unknown = combination(loss).unknown(outputs, targets)
        if unknown is not None and bool(unknown.any()):
            sample, *rest = unknown.nonzero()[0].tolist()
            raise UsageError(unknown_label(sample, int(targets[(sample, *rest)]), outputs.shape[1]))
        loss(outputs, targets)
    except UsageError:
        raise
    except FAILURES as error:
        shape = tuple(inputs.shape)
        raise UsageError(f"{flag}: cannot be evaluated on test samples of shape {shape}: {_line(error)}") from error


def _check_labels(labels: tuple[int, int], classes: int, flag: str) -> None:
    low, high = labels
    if low < 0 or high >= classes:
        raise UsageError(f"{flag}: has {classes} outputs, but labels go from {low} to {high}")


@dataclass(frozen=True)
class _Gradients:
    """Gradients of one batch, [n_params], by the plain module and under vmap, where two clients share the row."""

    module: nn.Module
    layout: ParamLayout
    loss: Loss
    inputs: Tensor
    targets: Tensor
    row: Tensor

    def fault_of_vmap(self, numerics: Numerics, *, compare: bool) -> str | None:
        """Explain why vmap cannot take the module, or return None.

        The gradients are compared in full precision, which shows a wrong vmap rule (torch 2.15 has one that is right
        for one client alone). In bf16 the order of operations alone changes the gradients of deep networks by 0.05 to
        0.2 of their norm (ResNet-56, ResNet-110), so that vmap may be off by three times the plain module's own error.

        compare: False for a module that draws random numbers, whose two passes differ anyway
        """
        full = dataclasses.replace(numerics, low=None)
        try:
            with without_tf32():
                exact = self._stacked(full)
            own = exact if numerics.low is None else self._stacked(numerics)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            return _line(error)
        if not compare:
            return None
        with without_tf32():
            wanted = self._plain(full)
        tolerance = 1e-6 if numerics.dtype == torch.float64 else 1e-2
        agree = _distance(exact, wanted) <= tolerance
        if numerics.low is not None:
            agree = agree and _distance(own, wanted) <= max(1e-1, 3 * _distance(self._plain(numerics), wanted))
        return None if agree else "its gradients under vmap are not those of the plain module"

    def _stacked(self, numerics: Numerics) -> Tensor:
        stacked = vmap(functools.partial(self._loss_of, numerics), randomness="different")
        losses = stacked(*(value.expand(2, *value.shape) for value in (self.row, self.inputs, self.targets)))
        (both,) = torch.autograd.grad(losses.sum(), self.row)
        return both / 2

    def _plain(self, numerics: Numerics) -> Tensor:
        (grad,) = torch.autograd.grad(self._loss_of(numerics, self.row, self.inputs, self.targets), self.row)
        return grad

    def _loss_of(self, numerics: Numerics, row: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        values = self.layout.views(row) | {name: value.clone() for name, value in self.module.named_buffers()}
        with numerics.autocast():
            outputs = functional_call(self.module, values, (inputs,))
        return self.loss(numerics.full(outputs), targets)


def _distance(gradient: Tensor, wanted: Tensor) -> float:
    """Relative to the norm of what is wanted; 0 where that is not finite, which is no fault of vmap's."""
    size = wanted.norm()
    return float((gradient - wanted).norm() / size.clamp(min=torch.finfo(size.dtype).tiny)) if size.isfinite() else 0.0


def _random_states(device: torch.device) -> list[Any]:
    """Of torch, Python and NumPy."""
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return [state.tolist(), random.getstate(), [np.asarray(part).tolist() for part in np.random.get_state()]]


@contextlib.contextmanager
def _python_random_kept() -> Iterator[None]:
    """While it lasts, what is drawn from Python's and NumPy's generators is drawn again afterwards."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
