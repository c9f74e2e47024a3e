"""What a module and a loss can do, found out by a few first steps of plain torch, with which ours are compared."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import UsageError, one_line
from ..common.random_states import random_kept, random_states
from ..data.labels import unknown_label
from ..models.batchnorm import batchnorm_buffers
from ..params.losses import Loss, combination
from ..params.precision import Numerics, without_tf32
from .plain_steps import FAILURES, PlainClient, PlainModule, Trace, foreign_leaves
from .python_state import GENERATORS, PLAIN, PythonState

CLIENTS, STEPS = 2, 2
QUICK = 0.1
"""Seconds of a first step beyond which all but the first client take one step."""
MOVED = 0.03
"""How far a step goes, relative to the root mean square of the parameters."""

Batches = Sequence[Sequence[tuple[Tensor, Tensor]]]
"""Inputs and targets of each client's steps."""


@dataclass(frozen=True)
class Probe:
    """What the first steps of the plain module have shown.

    classes: outputs per sample where they are [batch, classes] for integer targets [batch], so that accuracy means
        something; else None
    random: whether random numbers are drawn that nothing fixes: from torch's generators by what client_random does not
        know, from Python's or from NumPy's
    draws: whether such are drawn that client_random knows
    unused: names of parameters that the loss does not depend on
    state: what the buffers that a forward pass changes start from, by name
    reached: whether a forward pass or the loss reaches tensors of the user's module in another way than by their names
    remembers: whether the loss keeps something from call to call
    attributes: whether a forward pass changes attributes of the module
    hooked: whether gradients pass through hooks
    traces: of the steps, by client        rate: of these steps
    no_vmap: what keeps vmap from taking the module, or None
    """

    classes: int | None
    uses_rng: bool
    draws: bool
    unused: tuple[str, ...]
    state: Mapping[str, Tensor]
    reached: bool
    remembers: bool
    attributes: bool
    hooked: bool
    traces: Sequence[Trace] = field(repr=False)
    rate: float = 1.0
    no_vmap: str | None = None


def probe_module(plain: PlainModule, batches: Batches, names: Sequence[str]) -> Probe:
    """Take a few steps of the plain module; random states are left as they were, what the loss remembers is not.

    Args:
        plain: The module.
        batches: CLIENTS x STEPS of them.
        names: Of the parameters that are trained.

    Raises:
        UsageError: Where the module or the loss does not take a batch, or would not be trained as it is by itself.
    """
    memory = PythonState(plain.loss, without=[id(part) for part in plain.module.modules()])
    with random_kept(), without_tf32():
        return _probe(plain, batches, names, memory)


def _probe(plain: PlainModule, batches: Batches, names: Sequence[str], memory: PythonState) -> Probe:
    device = plain.numerics.device
    first = plain.client(0)
    start, untouched = _state(first), PythonState(first.module, tensors=False)
    states = random_states(device)
    began = time.perf_counter()
    (inputs, targets), rate = batches[0][0], 1.0
    value, outputs = first.forward(inputs, targets, 0)
    classes = outputs.shape[1] if targets.dim() == 1 and outputs.dim() == 2 else None
    _refuse_foreign(outputs, value, first.module, plain)
    gradients = first.gradients(value)
    rate = _rate(first, gradients)
    first.descend(gradients, rate)
    steps = STEPS if time.perf_counter() - began < QUICK else 1
    keeps = bool(untouched.changes())
    before, drawn = PythonState(first.module, tensors=False), states != random_states(device)
    changed = _changed(start, first, plain.flag)
    traces = [Trace([value.detach()], [first.row(names)])]
    first.take(batches[0], range(1, STEPS), rate, names, traces[0])
    changed |= _changed(start, first, plain.flag)
    changes = before.changes()
    _refuse_counters(changes, plain.flag)
    for number in range(1, CLIENTS):
        other = plain.client(number)
        trace = Trace()
        other.take(batches[number], range(steps), rate, names, trace)
        traces.append(trace)
        changed |= _changed(start, other, plain.flag)
        trace.state = {name: value for name, value in _state(other).items() if name in changed}
    if steps == STEPS:
        traces[0].state = {name: value for name, value in _state(first).items() if name in changed}
    for trace in traces:
        del trace.losses[steps:], trace.rows[steps:]
    return Probe(
        classes=None if targets.is_floating_point() else classes,
        uses_rng=drawn,
        draws=first.drawn,
        unused=tuple(name for name, gradient in gradients.items() if gradient is None),
        state={name: start[name] for name in start if name in changed},
        reached=bool(first.reached),
        remembers=bool(memory.changes()),
        attributes=keeps or bool(changes),
        hooked=first.hooked,
        traces=traces,
        rate=rate,
    )


def _rate(client: PlainClient, gradients: Mapping[str, Tensor | None]) -> float:
    there = [gradient for gradient in gradients.values() if gradient is not None]
    steep = torch.stack([gradient.norm() for gradient in there]).norm() if there else torch.zeros(())
    large = torch.stack([each.detach().norm() for each in client.module.parameters() if each.requires_grad]).norm()
    rate = MOVED * float(large) / float(steep) if float(steep) else 1.0
    return rate if 0 < rate < 1e6 else 1.0


def _state(client: PlainClient) -> dict[str, Tensor]:
    """Copies of all but the trained parameters and the statistics that are estimated anew, by name."""
    estimated = batchnorm_buffers(client.module)
    frozen = {name: value for name, value in client.module.named_parameters() if not value.requires_grad}
    values = {**dict(client.module.named_buffers()), **frozen}
    return {name: value.detach().clone() for name, value in values.items() if name not in estimated}


def _changed(start: Mapping[str, Tensor], client: PlainClient, flag: str) -> set[str]:
    """Names of the buffers that are not as they were at the start."""
    now = _state(client)
    for name in {*start} ^ {*now}:
        raise UsageError(f"{flag}: its forward adds or removes the buffer {name}; give it its first value in __init__")
    for name, value in now.items():
        if value.shape != start[name].shape or value.dtype != start[name].dtype:
            raise UsageError(
                f"{flag}: its forward changes the buffer {name} from {list(start[name].shape)} {start[name].dtype} to "
                f"{list(value.shape)} {value.dtype}; keep its shape and its type"
            )
    return {name for name, value in now.items() if not _equal(value, start[name])}


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())


def _refuse_counters(changes: Sequence[tuple[str, Any, Any]], flag: str) -> None:
    """What changes from step to step beside buffers, and is no tensor that is computed anew each time."""
    for path, before, now in changes:
        if isinstance(before, Tensor) or isinstance(now, Tensor):
            continue
        if isinstance(now, tuple) and now and isinstance(now[0], GENERATORS):
            raise UsageError(
                f"{flag}: its forward draws from a generator of its own, {path}, which clients would share; draw "
                "without one: the run's seed, the client and the step then decide"
            )
        if isinstance(before, PLAIN) and isinstance(now, PLAIN):
            what = f"the attribute {path} ({before!r}, then {now!r})"
        else:
            what = f"what its attribute {path} holds"
        raise UsageError(
            f"{flag}: its forward changes {what}, which clients would share; make it a buffer (register_buffer), which "
            "every client keeps for itself"
        )


def _refuse_foreign(outputs: Tensor, value: Tensor, module: nn.Module, plain: PlainModule) -> None:
    for leaf in foreign_leaves(outputs, module):
        raise UsageError(
            f"{plain.flag}: its forward depends on a tensor of shape {tuple(leaf.shape)} that requires a gradient and "
            "is none of its parameters, so that nothing would train it; register it (as an nn.Parameter, or its layer "
            "in an nn.ModuleList), or detach it"
        )
    loss = plain.loss
    own = dict(loss.named_parameters()) if isinstance(loss, nn.Module) else {}
    for leaf in foreign_leaves(value, module):
        name = next((name for name, parameter in own.items() if parameter is leaf), None)
        if name is not None:
            raise UsageError(
                f"loss: has a parameter of its own, {name}, that nothing would train; make it part of the model"
            )
        raise UsageError(
            f"loss: depends on a tensor of shape {tuple(leaf.shape)} that requires a gradient and that nothing would "
            "train; make it part of the model, or detach it"
        )


@torch.no_grad()
def try_evaluation(
    module: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, numerics: Numerics, *, flag: str
) -> None:
    """Raise UsageError where an evaluation would fail on test samples that are not like the training samples.

    Args:
        module: The plain module.
        loss: Of the run.
        inputs: Of a few test samples.
        targets: Theirs.
        numerics: Of the run.
        flag: What the user set, for the message.
    """
    trial = copy.deepcopy(module).eval()
    try:
        with random_kept(), numerics.autocast():
            outputs = numerics.to_param_dtype(trial(inputs))
    except FAILURES as error:
        raise UsageError(f"{flag}: {_not_evaluated(trial, inputs, numerics)}: {one_line(error)}") from error
    try:
        unknown = combination(loss).unknown(outputs, targets)
        if unknown is not None and bool(unknown.any()):
            sample, *rest = unknown.nonzero()[0].tolist()
            raise UsageError(unknown_label(sample, int(targets[(sample, *rest)]), outputs.shape[1]))
        loss(outputs, targets)
    except UsageError:
        raise
    except FAILURES as error:
        about = f"test outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}"
        raise UsageError(f"loss: fails on {about}: {one_line(error)}") from error


@torch.enable_grad()
def _not_evaluated(trial: nn.Module, inputs: Tensor, numerics: Numerics) -> str:
    """What keeps it from being evaluated: that nothing has a gradient there, or the samples."""
    try:
        with random_kept(), numerics.autocast():
            trial(inputs)
    except FAILURES:
        return f"cannot be evaluated on test samples of shape {tuple(inputs.shape)}"
    return "cannot be evaluated within torch.no_grad(); use torch.enable_grad() in forward where it needs gradients"
