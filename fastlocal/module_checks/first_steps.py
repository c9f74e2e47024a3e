"""Compare the first steps under vmap and in the looped executor with those of plain torch."""

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
from ..params.correction import CorrectionTerms
from ..params.losses import move_loss
from ..params.precision import Numerics, without_tf32
from .plain_steps import FAILURES, PlainModule, Trace
from .probe import CLIENTS, STEPS, Batches, Probe

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-2}
LOW = 3e-1
"""Tolerance of steps in bf16, or three times the plain module's own error if that is larger. The order of operations
changes the gradients of deep networks by 0.05 to 0.2 of their norm (ResNet-56, ResNet-110; 0.18 for three layers with
GroupNorm); a batching rule that is wrong in bf16 changes them by 1."""


def compare(plain: PlainModule, problem: LocalProblem, batches: Batches, probe: Probe) -> Probe:
    """Compare the steps of the executors with those of plain torch.

    Args:
        plain: The module.
        problem: The local step of the run; its source and its optimizer are not used.
        batches: Batches of the probe.
        probe: Result of plain torch on these batches.

    Returns:
        The probe, with the reason if vmap cannot take the module.

    Raises:
        UsageError: The steps of the looped executor differ from those of plain torch.
    """
    problem = dataclasses.replace(
        problem,
        momentum=0.0,
        adamw=None,
        weight_decay=0.0,
        clip_norm=None,
        noise=None,
        topk=(),
        correction=CorrectionTerms(),
    )
    with preserve_state(problem.loss), preserve_random_states(), without_tf32():
        no_vmap, reached = _vmap_fault(plain, problem, batches, probe)
        plain.user_state.check()
    probe = dataclasses.replace(probe, reached=probe.reached or reached)
    with preserve_state(problem.loss), preserve_random_states(), without_tf32():
        _check_looped(plain, problem, batches, probe)
        plain.user_state.check()
    return dataclasses.replace(probe, no_vmap=no_vmap)


def _vmap_fault(plain: PlainModule, problem: LocalProblem, batches: Batches, probe: Probe) -> tuple[str | None, bool]:
    """Return why vmap cannot take the module, or None, and whether code refers to the user's tensors directly."""
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
    distance = _distance(traces, probe.traces, _start(problem))
    agree = distance <= TOLERANCES[problem.numerics.dtype]
    if not agree and full.dtype == torch.float32 and not reached:
        agree = _differs_by_rounding(plain, problem, batches, probe, distance)
    if low is not None:
        unstacked, _ = _stacked(problem, problem.numerics, batches, probe, 1, unstacked=True)
        plain_error = _distance(unstacked, probe.traces, _start(problem))
        agree = agree and _distance(low, probe.traces, _start(problem)) <= max(LOW, 3 * plain_error)
    return None if agree else "its first steps under vmap are not those of the plain module", reached


def _differs_by_rounding(
    plain: PlainModule, problem: LocalProblem, batches: Batches, probe: Probe, distance: float
) -> bool:
    """Return True if rounding alone explains the distance of vmap's steps in float32.

    The steps must agree in float64, and the distance may be three times that of the plain module's own steps in float32
    from float64. Example: the last norms of a ResNet-50 see eight values each in a batch of eight 32 x 32 images, and
    rounding changes its first steps by 0.7 of their size.
    """
    try:
        wide = _InFloat64(plain, problem, batches, probe)
        traces, _ = _stacked(wide.problem, wide.problem.numerics, wide.batches, probe, wide.steps)
    except FAILURES:
        return False
    if not _distance(traces, wide.traces, _start(wide.problem)) <= TOLERANCES[torch.float64]:
        return False
    return distance <= 3 * _distance(probe.traces, wide.traces, _start(wide.problem))


class _InFloat64:
    """The local step, the batches and the plain module's steps in float64."""

    def __init__(self, plain: PlainModule, problem: LocalProblem, batches: Batches, probe: Probe) -> None:
        device, dtype = plain.numerics.device, torch.float64
        numerics = dataclasses.replace(plain.numerics, dtype=dtype)
        loss, module = move_loss(plain.loss, device, dtype), cast(copy.deepcopy(plain.module), device, dtype)
        plain = dataclasses.replace(plain, module=module, loss=loss, numerics=numerics)
        state = {name: _to_float64(value) for name, value in problem.state.items()}
        self.steps = len(probe.traces[0].losses)
        self.problem = dataclasses.replace(
            problem, module=local_module(module, plain.modes), loss=loss, numerics=numerics, state=state
        )
        self.batches = [[(_to_float64(inputs), _to_float64(targets)) for inputs, targets in each] for each in batches]
        self.traces = []
        for number in range(CLIENTS):
            client, trace = plain.client(number), Trace()
            client.train(self.batches[number], range(self.steps), probe.rate, problem.layout.names, trace)
            trace.state = {name: value for name, value in client.module.state_dict().items() if name in state}
            self.traces.append(trace)


def _to_float64(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _check_looped(plain: PlainModule, problem: LocalProblem, batches: Batches, probe: Probe) -> None:
    problem = dataclasses.replace(problem, numerics=dataclasses.replace(problem.numerics, autocast_dtype=None))
    steps = len(probe.traces[0].losses)
    if steps < STEPS and (probe.uses_rng or probe.stateful_loss):
        return  # the first client took more steps than the trace has, so that random draws and state differ
    try:
        distance = _distance(_looped(problem, batches, probe, steps), probe.traces, _start(problem))
        if not distance <= TOLERANCES[problem.numerics.dtype] and problem.numerics.dtype == torch.float32:
            wide = _InFloat64(plain, problem, batches, probe)  # the distance may be due to rounding
            distance = _distance(_looped(wide.problem, wide.batches, probe, steps), wide.traces, _start(wide.problem))
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
    problem: LocalProblem, numerics: Numerics, batches: Batches, probe: Probe, steps: int, *, unstacked: bool = False
) -> tuple[list[Trace], bool]:
    """Take the steps of all clients under vmap, or with `unstacked` a first step of each client alone.

    Returns:
        The traces, and whether code refers to the user's tensors directly.
    """
    problem, device = dataclasses.replace(problem, numerics=numerics), numerics.device
    client_forward = Forward(problem, copy.deepcopy(problem.module))  # a copy, in which batched tensors may remain
    stack = problem.stack(CLIENTS)
    rows, state = stack.params, dict(stack.state)
    clients, traces = torch.arange(CLIENTS, device=device), [Trace() for _ in range(CLIENTS)]

    def forward(
        row: Tensor, state: dict[str, Tensor], inputs: Tensor, targets: Tensor, client: Tensor, step: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        values = {**problem.layout.views(row), **{name: value.clone() for name, value in state.items()}}
        loss, _ = client_forward(values, inputs, targets, client, step)
        return loss, {name: values[name] for name in state}

    stacked = vmap(forward, (0, 0, 0, 0, 0, None), randomness="different")
    for step in range(steps):
        leaf = rows.detach().requires_grad_()
        inputs, targets = (torch.stack([batches[client][step][part] for client in range(CLIENTS)]) for part in (0, 1))
        number = torch.tensor(step, device=device)
        if unstacked:
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
    client_forward.constants.check()
    return traces, bool(client_forward.reached)


def _looped(problem: LocalProblem, batches: Batches, probe: Probe, steps: int) -> list[Trace]:
    """Take the steps of one client after the other in the looped executor."""
    executor, device = LoopedExecutor(problem), problem.numerics.device
    stack = problem.stack(CLIENTS)
    rate = torch.full((1,), probe.rate, dtype=stack.params.dtype, device=device)
    traces = []
    for client in range(CLIENTS):
        trace = Trace()
        numbers = torch.arange(steps, device=device)
        inputs_targets = [(Batch(inputs.clone(), targets), targets) for inputs, targets in batches[client][:steps]]
        number = torch.tensor(client, device=device)
        for loss, _, _ in executor.steps(stack, client, inputs_targets, [rate] * steps, number, numbers):
            trace.losses.append(loss)
            trace.rows.append(executor.row.clone())
        trace.state = {name: rows[client] for name, rows in stack.state.items()}
        traces.append(trace)
    return traces


def _distance(traces: Sequence[Trace], expected: Sequence[Trace], start: Tensor) -> float:
    """Return the largest relative distance of a loss, a step or a buffer from the expected one.

    Expected values that are not finite are skipped. Buffers are compared only if all steps were taken.
    """
    distances = [0.0]
    for trace, plain in zip(traces, expected, strict=True):
        eps = torch.finfo(start.dtype).eps
        pairs = [(actual, value, eps) for actual, value in zip(trace.losses, plain.losses, strict=False)]
        rows = zip(trace.rows, plain.rows, strict=False)
        pairs += [(row - start, other - start, eps * float(start.norm())) for row, other in rows]
        if len(trace.losses) == len(plain.losses):
            pairs += [(trace.state[name], value, eps) for name, value in plain.state.items() if name in trace.state]
        for actual, value, rounding in pairs:
            actual, value = (_real(each) for each in (actual, value))
            size = value.norm()
            if bool(size.isfinite()):
                distance = float((actual - value).norm() / size.clamp(min=rounding or eps))
                distances.append(distance if math.isfinite(distance) else math.inf)
    return max(distances)


def _real(value: Tensor) -> Tensor:
    value = torch.view_as_real(value) if value.is_complex() else value
    return value if value.is_floating_point() else value.double()
