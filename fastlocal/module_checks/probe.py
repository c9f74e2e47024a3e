"""Probe a module and a loss by a few first steps of plain torch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..common.errors import UsageError
from ..common.random_states import preserve_random_states, random_states
from ..models.batchnorm import batchnorm_buffers
from ..models.mirror import attribute_of
from ..models.python_state import Change, PythonState
from ..models.state_holders import GENERATORS, PLAIN
from ..params.losses import combination
from ..params.precision import without_tf32
from .plain_steps import PlainClient, PlainModule, Trace, foreign_leaves
from .side_effects import of_tensors

CLIENTS, STEPS = 2, 2
QUICK = 0.1
"""Seconds of a first step beyond which all clients but the first take only one step."""
STEP_SIZE = 0.03
"""Size of a step, relative to the root mean square of the parameters."""

Batches = Sequence[Sequence[tuple[Tensor, Tensor]]]
"""Inputs and targets of each client's steps."""


@dataclass(frozen=True)
class Probe:
    """Result of the first steps of the plain module.

    Attributes:
        classes: Number of outputs, if outputs are [batch, classes] and targets are integers [batch], or the loss says
            that they are tokens, so that an accuracy exists; else None.
        places: Number of targets of a sample, of which there are several if they are tokens.
        uses_rng: Whether the module draws random numbers that no client's seed fixes: from Python, NumPy or torch
            functions outside client_random.
        draws: Whether the module draws random numbers that client_random covers.
        unused: Names of the parameters that the loss does not depend on.
        state: {name: start value} of the buffers that a forward pass changes.
        reached: Whether a forward pass or the loss refers to tensors of the user's module directly.
        stateful_loss: Whether the loss keeps state between calls.
        recomputed: Paths of the attributes that each forward pass recomputes.
        shared: Path of a recomputed attribute that copies of the module share, or that the loss may read from the
            user's module; or None.
        hooked: Whether there are hooks on gradients.
        traces: Trace of each client's steps.
        rate: Learning rate of the steps.
        no_vmap: Why vmap cannot take the module, or None.
    """

    classes: int | None
    places: int
    uses_rng: bool
    draws: bool
    unused: tuple[str, ...]
    state: Mapping[str, Tensor]
    reached: bool
    stateful_loss: bool
    recomputed: frozenset[str]
    shared: str | None
    hooked: bool
    traces: Sequence[Trace] = field(repr=False)
    rate: float = 1.0
    no_vmap: str | None = None


def probe_module(plain: PlainModule, batches: Batches, names: Sequence[str]) -> Probe:
    """Take a few steps of the plain module; random states are restored, the state of the loss is not.

    Args:
        plain: The module.
        batches: CLIENTS x STEPS batches.
        names: Names of the trained parameters.

    Raises:
        UsageError: The module or the loss fails on a batch, or cannot be trained by clients as by itself.
    """
    memory = PythonState(plain.loss, own=plain.module, without=plain.user_state.reached)
    with preserve_random_states(), without_tf32():
        probe = _probe(plain, batches, names)
    plain.user_state.check()
    changes = memory.changes()
    for change in changes:
        if change.irreversible:
            raise UsageError(
                f"loss: keeps its place in an iterator, {change.path}, which nothing can put back after the first "
                "steps; keep a number in its place"
            )
    parts = {name for name, _ in plain.module.named_modules()}
    recomputed, all_shared = sorted(probe.recomputed), memory.reached_excluded
    shared = [path for path in recomputed if all_shared or attribute_of(path, parts) is None]
    return dataclasses.replace(probe, stateful_loss=bool(changes), shared=shared[0] if shared else None)


def _probe(plain: PlainModule, batches: Batches, names: Sequence[str]) -> Probe:
    device = plain.numerics.device
    first = plain.client(0)
    start = _state(first)
    states = random_states(device)
    began = time.perf_counter()
    (inputs, targets), rate = batches[0][0], 1.0
    value, outputs = first.forward(inputs, targets, 0)
    tokens = combination(plain.loss).class_axis == -1
    classes = outputs.shape[-1] if tokens or (targets.dim() == 1 and outputs.dim() == 2) else None
    _refuse_foreign(outputs, value, first, plain)
    gradients = first.gradients(value)
    rate = _rate(first, gradients)
    first.descend(gradients, rate)
    steps = STEPS if time.perf_counter() - began < QUICK else 1
    before, drawn = PythonState(first.module, own=first.module), states != random_states(device)
    changed = _changed(start, first, plain.flag)
    traces = [Trace([value.detach()], [first.row(names)])]
    first.train(batches[0], range(1, STEPS), rate, names, traces[0])
    changed |= _changed(start, first, plain.flag)
    recomputed = _recomputed(before.changes(), plain.flag)
    for number in range(1, CLIENTS):
        other = plain.client(number)
        trace = Trace()
        other.train(batches[number], range(steps), rate, names, trace)
        traces.append(trace)
        changed |= _changed(start, other, plain.flag)
        trace.state = {name: value for name, value in _state(other).items() if name in changed}
    if steps == STEPS:
        traces[0].state = {name: value for name, value in _state(first).items() if name in changed}
    for trace in traces:
        del trace.losses[steps:], trace.rows[steps:]
    if first.seeds is not None and (first.drawn or drawn):
        raise UsageError(
            f"{plain.flag}: its forward, or the loss, calls {first.seeds} and draws random numbers, which here depend "
            "on the run's seed, the client and the step alone; draw what must repeat once, in __init__, and keep it in "
            "a buffer"
        )
    return Probe(
        classes=None if targets.is_floating_point() else classes,
        places=targets[0].numel() if tokens else 1,
        uses_rng=drawn,
        draws=first.drawn,
        unused=tuple(name for name, gradient in gradients.items() if gradient is None),
        state={name: start[name] for name in start if name in changed},
        reached=bool(first.reached),
        stateful_loss=False,
        recomputed=recomputed,
        shared=None,
        hooked=first.hooked,
        traces=traces,
        rate=rate,
    )


def _rate(client: PlainClient, gradients: Mapping[str, Tensor | None]) -> float:
    """Return a rate for which a step changes the parameters by STEP_SIZE of their norm."""
    present = [gradient for gradient in gradients.values() if gradient is not None]
    grad_norm = torch.stack([gradient.norm() for gradient in present]).norm() if present else torch.zeros(())
    norm = torch.stack([each.detach().norm() for each in client.module.parameters() if each.requires_grad]).norm()
    rate = STEP_SIZE * float(norm) / float(grad_norm) if float(grad_norm) else 1.0
    return rate if 0 < rate < 1e6 else 1.0


def _state(client: PlainClient) -> dict[str, Tensor]:
    """Copy all tensors by name, except trained parameters and re-estimated statistics."""
    estimated = batchnorm_buffers(client.module)
    frozen = {name: value for name, value in client.module.named_parameters() if not value.requires_grad}
    values = {**dict(client.module.named_buffers()), **frozen}
    return {name: value.detach().clone() for name, value in values.items() if name not in estimated}


def _changed(start: Mapping[str, Tensor], client: PlainClient, flag: str) -> set[str]:
    """Return the names of the buffers that differ from their start values."""
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


def _recomputed(changes: Sequence[Change], flag: str) -> frozenset[str]:
    """Return the paths of attributes whose tensors each step recomputes; raise UsageError for any other change."""
    paths = set()
    for path, before, now, in_place, new, _ in changes:
        if not in_place and not new and of_tensors(before) and of_tensors(now):
            paths.add(path)
            continue
        if isinstance(now, tuple) and now and isinstance(now[0], GENERATORS):
            raise UsageError(
                f"{flag}: its forward draws from a generator of its own, {path}, which clients would share; draw "
                "without one: the run's seed, the client and the step then decide"
            )
        if isinstance(before, PLAIN) and isinstance(now, PLAIN) and not new:
            what = f"the attribute {path} ({before!r}, then {now!r})"
        else:
            what = f"what its attribute {path} holds"
        raise UsageError(
            f"{flag}: its forward changes {what}, which clients would share; make it a buffer (register_buffer), which "
            "every client keeps for itself"
        )
    return frozenset(paths)


def _refuse_foreign(outputs: Tensor, value: Tensor, client: PlainClient, plain: PlainModule) -> None:
    for leaf in foreign_leaves(outputs, client.module, client.leaves):
        raise UsageError(
            f"{plain.flag}: its forward depends on a tensor of shape {tuple(leaf.shape)} that requires a gradient and "
            "is none of its parameters, so that nothing would train it; register it (as an nn.Parameter, or its layer "
            "in an nn.ModuleList), or detach it"
        )
    loss = plain.loss
    own = dict(loss.named_parameters()) if isinstance(loss, nn.Module) else {}
    for leaf in foreign_leaves(value, client.module, client.leaves):
        name = next((name for name, parameter in own.items() if parameter is leaf), None)
        if name is not None:
            raise UsageError(
                f"loss: has a parameter of its own, {name}, that nothing would train; make it part of the model"
            )
        raise UsageError(
            f"loss: depends on a tensor of shape {tuple(leaf.shape)} that requires a gradient and that nothing would "
            "train; make it part of the model, or detach it"
        )
