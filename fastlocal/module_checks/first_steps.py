"""The first steps of clients side by side, and of one live module for all, compared with those of plain torch."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import vmap

from fastlocal.kernels import functional

from ..common.errors import UsageError, one_line
from ..common.random_states import preserve_random_states
from ..data.sources.base import Batch
from ..executors.base import LocalProblem
from ..executors.forward import Forward
from ..executors.looped import LoopedExecutor
from ..models.functional import local_module
from ..models.modes import cast
from ..models.python_state import preserve_state
from ..params.losses import move_loss
from ..params.precision import Numerics, without_tf32
from .plain_steps import FAILURES, PlainModule, Trace
from .probe import CLIENTS, STEPS, Batches, Probe

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-2}
LOW = 3e-1
"""Of steps in bf16: there the order of operations alone changes the gradients of deep networks by 0.05 to 0.2 of their
norm (ResNet-56, ResNet-110; 0.18 for three layers with GroupNorm), so that vmap may be off by three times the plain
module's own error. A rule that is wrong for bf16 alone is off by 1."""


def compare(plain: PlainModule, problem: LocalProblem, batches: Batches, probe: Probe) -> Probe:
    """`probe` with what keeps vmap from taking the module.

    Args:
        plain: The module.
        problem: Of the run; its source and its optimizer are not used.
        batches: Those that `probe` was found with.
        probe: What plain torch did with them.

    Raises:
        UsageError: Where neither vmap nor one module for all clients trains what plain torch trains.
    """
    problem = dataclasses.replace(problem, momentum=0.0, weight_decay=0.0, clip_norm=None, noise=None, topk=())
    with preserve_state(problem.loss), preserve_random_states(), without_tf32():
        no_vmap, reached = _fault_of_vmap(plain, problem, batches, probe)
        plain.user_state.check()
    probe = dataclasses.replace(probe, reached=probe.reached or reached)
    with preserve_state(problem.loss), preserve_random_states(), without_tf32():
        _check_looped(plain, problem, batches, probe)
        plain.user_state.check()
    return dataclasses.replace(probe, no_vmap=no_vmap)


def _fault_of_vmap(
    plain: PlainModule, problem: LocalProblem, batches: Batches, probe: Probe
) -> tuple[str | None, bool]:
    """Why vmap cannot take the module, or None, and whether tensors are reached past their names."""
    if probe.hooked:
        return "it does not call the hooks on gradients", False
    full = dataclasses.replace(problem.numerics, autocast_dtype=None)
    try:
        traces, reached = _stacked(problem, full, batches, probe, len(probe.traces[0].losses))
        low = None
        if problem.numerics.autocast_dtype is not None:
            low, _ = _stacked(problem, problem.numerics, batches, probe, 1)
    except FAILURES as error:
        return one_line(error), False
    if probe.uses_rng or probe.stateful_loss:
        return None, reached
    off = _distance(traces, probe.traces, _start(problem))
    agree = off <= TOLERANCES[problem.numerics.dtype]
    if not agree and full.dtype == torch.float32 and not reached:
        agree = _only_rounded(plain, problem, batches, probe, off)
    if low is not None:
        apart, _ = _stacked(problem, problem.numerics, batches, probe, 1, apart=True)
        own = _distance(apart, probe.traces, _start(problem))
        agree = agree and _distance(low, probe.traces, _start(problem)) <= max(LOW, 3 * own)
    return None if agree else "its first steps under vmap are not those of the plain module", reached


def _only_rounded(plain: PlainModule, problem: LocalProblem, batches: Batches, probe: Probe, off: float) -> bool:
    """Return whether rounding alone sets vmap's steps in float32 apart from the plain module's.

    The steps of both are taken again in float64, where they must agree; and vmap may be off by three times what the
    plain module's own steps in float32 are off from those in float64. Example: the last norms of a ResNet-50 see eight
    values each in a batch of eight 32 x 32 images, and rounding sets its first steps apart by 0.7 of their size.
    """
    try:
        wide = _InFloat64(plain, problem, batches, probe)
        traces, _ = _stacked(wide.problem, wide.problem.numerics, wide.batches, probe, wide.steps)
    except FAILURES:
        return False
    if not _distance(traces, wide.wanted, _start(wide.problem)) <= TOLERANCES[torch.float64]:
        return False
    return off <= 3 * _distance(probe.traces, wide.wanted, _start(wide.problem))


class _InFloat64:
    """The module, its batches and the plain module's steps in float64."""

    def __init__(self, plain: PlainModule, problem: LocalProblem, batches: Batches, probe: Probe) -> None:
        device, dtype = plain.numerics.device, torch.float64
        numerics = dataclasses.replace(plain.numerics, dtype=dtype)
        loss, module = move_loss(plain.loss, device, dtype), cast(copy.deepcopy(plain.module), device, dtype)
        plain = dataclasses.replace(plain, module=module, loss=loss, numerics=numerics)
        state = {name: _widened(value) for name, value in problem.state.items()}
        self.steps = len(probe.traces[0].losses)
        self.problem = dataclasses.replace(
            problem, module=local_module(module, plain.modes), loss=loss, numerics=numerics, state=state
        )
        self.batches = [[(_widened(inputs), _widened(targets)) for inputs, targets in each] for each in batches]
        self.wanted = []
        for number in range(CLIENTS):
            client, trace = plain.client(number), Trace()
            client.take(self.batches[number], range(self.steps), probe.rate, problem.layout.names, trace)
            trace.state = {name: value for name, value in client.module.state_dict().items() if name in state}
            self.wanted.append(trace)


def _widened(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _check_looped(plain: PlainModule, problem: LocalProblem, batches: Batches, probe: Probe) -> None:
    problem = dataclasses.replace(problem, numerics=dataclasses.replace(problem.numerics, autocast_dtype=None))
    steps = len(probe.traces[0].losses)
    if steps < STEPS and (probe.uses_rng or probe.stateful_loss):
        return  # the first client took more, so that what is drawn or remembered afterwards is something else
    try:
        distance = _distance(_looped(problem, batches, probe, steps), probe.traces, _start(problem))
        if not distance <= TOLERANCES[problem.numerics.dtype] and problem.numerics.dtype == torch.float32:
            wide = _InFloat64(plain, problem, batches, probe)  # as rounding alone may set them apart
            distance = _distance(_looped(wide.problem, wide.batches, probe, steps), wide.wanted, _start(wide.problem))
            problem = wide.problem
    except UsageError:
        raise
    except FAILURES as error:
        raise UsageError(
            f"{plain.flag}: fails as one module for all clients ({one_line(error)}): local steps keep no running "
            "statistics of a norm in training mode; read none of them in forward"
        ) from error
    if not distance <= TOLERANCES[problem.numerics.dtype]:
        raise UsageError(
            f"{plain.flag}: one module for all clients does not take the steps that each client's own would (they "
            f"differ by {distance:.1g}): it keeps something from call to call that is no buffer, reads the running "
            "statistics of a norm in training mode, or computes anew each time; make what it keeps buffers "
            "(register_buffer)"
        )


def _start(problem: LocalProblem) -> Tensor:
    return problem.layout.flatten(dict(problem.module.named_parameters()))


def _stacked(
    problem: LocalProblem, numerics: Numerics, batches: Batches, probe: Probe, steps: int, *, apart: bool = False
) -> tuple[list[Trace], bool]:
    """All clients' steps under vmap, or a first one each by itself; whether tensors are reached past their names."""
    problem = dataclasses.replace(problem, numerics=numerics)
    one, device = Forward(problem, copy.deepcopy(problem.module)), numerics.device  # batched tensors may stay in it
    stack = problem.stack(CLIENTS)
    rows, state = stack.params, dict(stack.state)
    clients, traces = torch.arange(CLIENTS, device=device), [Trace() for _ in range(CLIENTS)]

    def forward(
        row: Tensor, state: dict[str, Tensor], inputs: Tensor, targets: Tensor, client: Tensor, step: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        values = {**problem.layout.views(row), **{name: value.clone() for name, value in state.items()}}
        loss, _ = one(values, inputs, targets, client, step)
        return loss, {name: values[name] for name in state}

    stacked = vmap(forward, (0, 0, 0, 0, 0, None), randomness="different")
    for step in range(steps):
        leaf = rows.detach().requires_grad_()
        inputs, targets = (torch.stack([batches[client][step][part] for client in range(CLIENTS)]) for part in (0, 1))
        number = torch.tensor(step, device=device)
        if apart:
            each = zip(leaf, inputs, targets, clients, strict=True)
            losses = torch.stack([forward(row, {}, x, y, client, number)[0] for row, x, y, client in each])
        else:
            with functional.StackedOps("auto" if device.type == "cpu" else "grouped"):
                losses, state = stacked(leaf, state, inputs, targets, clients, number)
        (grads,) = torch.autograd.grad(losses.sum(), leaf, materialize_grads=True)
        rows = rows - probe.rate * grads
        state = {name: value.detach() for name, value in state.items()}
        for client, trace in enumerate(traces):
            trace.losses.append(losses[client].detach())
            trace.rows.append(rows[client])
            trace.state = {name: value[client] for name, value in state.items()}
    one.constants.check()
    return traces, bool(one.reached)


def _looped(problem: LocalProblem, batches: Batches, probe: Probe, steps: int) -> list[Trace]:
    """One client after the other through one module."""
    executor, device = LoopedExecutor(problem), problem.numerics.device
    stack = problem.stack(CLIENTS)
    rate = torch.full((1,), probe.rate, dtype=stack.params.dtype, device=device)
    traces = []
    for client in range(CLIENTS):
        trace = Trace()
        numbers = torch.arange(steps, device=device)
        given = [(Batch(inputs.clone(), targets), targets) for inputs, targets in batches[client][:steps]]
        taken = executor.steps(stack, client, given, [rate] * steps, torch.tensor(client, device=device), numbers)
        for loss, _, _ in taken:
            trace.losses.append(loss)
            trace.rows.append(executor.row.clone())
        trace.state = {name: rows[client] for name, rows in stack.state.items()}
        traces.append(trace)
    return traces


def _distance(traces: Sequence[Trace], wanted: Sequence[Trace], start: Tensor) -> float:
    """The largest of: a loss's, a step's and a buffer's distance from what is wanted, relative to that.

    0 where what is wanted is not finite, which is no fault of ours. Buffers count where all steps were taken.
    """
    found = [0.0]
    for trace, plain in zip(traces, wanted, strict=True):
        least = torch.finfo(start.dtype).eps
        pairs = [(got, value, least) for got, value in zip(trace.losses, plain.losses, strict=False)]
        moved = zip(trace.rows, plain.rows, strict=False)
        pairs += [(row - start, other - start, least * float(start.norm())) for row, other in moved]
        if len(trace.losses) == len(plain.losses):
            pairs += [(trace.state[name], value, least) for name, value in plain.state.items() if name in trace.state]
        for got, value, rounding in pairs:
            got, value = (_real(each) for each in (got, value))
            size = value.norm()
            if bool(size.isfinite()):
                off = float((got - value).norm() / size.clamp(min=rounding or least))
                found.append(off if math.isfinite(off) else math.inf)
    return max(found)


def _real(value: Tensor) -> Tensor:
    value = torch.view_as_real(value) if value.is_complex() else value
    return value if value.is_floating_point() else value.double()
