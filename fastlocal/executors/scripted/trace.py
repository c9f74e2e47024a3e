"""One client's local step as a TorchScript function: forward, backward and update without the Python interpreter.

The step is traced once through autograd into torch's own operations, which are written out as TorchScript. A step of a
small model takes a third of the time of the same step from Python (two linear layers on 28 x 28 images, batch 16: 0.2
against 0.6 ms on one core), and threads do not wait for each other's interpreter lock.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...kernel_trial.kernels_tried import load_native, native_lines
from ...params.client_stack import ClientStack
from ...telemetry.trace import span
from ..base import LocalProblem
from ..round_plan import RoundPlan
from .emit import ScriptText
from .fuse_linear import MERGED_WEIGHT
from .trace_checks import check_forward, check_shapes, perturbed

Steps = Callable[..., tuple[Tensor, Tensor]]


class ScriptedSteps:
    """Takes a client's local steps by a function that `script` made; several threads may share one."""

    def __init__(self, problem: LocalProblem, steps: Steps, constants: list[Tensor]) -> None:
        self.problem = problem
        self._steps = steps
        self._constants = constants

    @torch.no_grad()
    def run_client(self, stack: ClientStack, plan: RoundPlan, client: int, losses: Tensor) -> Tensor:
        """All local steps of one client of the stack; fills `losses` [local_steps].

        Returns right predictions, float64 [problem.counts].
        """
        rows = stack.params[client], None if stack.momentum is None else stack.momentum[client]
        rates = plan.learning_rates[:, client].tolist()
        correct = torch.zeros(self.problem.counts, dtype=torch.float64)
        begin = 0
        for batch, targets in self.problem.blocks_of(plan, client):
            end = begin + len(targets)
            some = *rows, self._constants, batch.inputs, targets, batch.targets, rates[begin:end]
            with span("local_step"):
                losses[begin:end], hits = self._steps(*some)
            correct += hits
            begin = end
        return correct

    @torch.no_grad()
    def first_step(self, params: Tensor, momentum: Tensor | None, inputs: Tensor, targets: Tensor) -> Tensor:
        """One step at rate 1 of a client with these rows [n_params], which change; returns its loss."""
        block = inputs.unsqueeze(0), targets.unsqueeze(0), targets.unsqueeze(0)
        return self._steps(params, momentum, self._constants, *block, [1.0])[0][0]


def script(problem: LocalProblem, inputs: Tensor, targets: Tensor, *, channels_last: bool) -> ScriptedSteps:
    """The local step for batches of these shapes and types on a CPU.

    inputs, targets: one batch, without a client axis        channels_last: memory layout of images and filters
    Raises one of probe.FAILURES where the module cannot be traced.
    """
    if problem.state or problem.held or problem.draws:
        raise RuntimeError("its buffers change, it draws random numbers, or parameters are reached past their names")
    from torch.fx.experimental.proxy_tensor import make_fx  # takes 0.5 s to import

    module = copy.deepcopy(problem.module)

    def forward(params: Mapping[str, Tensor], inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if channels_last:
            inputs = _channels_last(inputs)
            params = {name: _channels_last(value) for name, value in params.items()}
        with problem.numerics.autocast():
            outputs = functional_call(module, dict(params), (inputs,))
        return problem.loss(problem.numerics.to_param_dtype(outputs), targets), outputs

    decays = problem.layout.decays if problem.weight_decay else ()  # asked here, as a trace reads no values

    def gradients(params: list[Tensor], inputs: Tensor, targets: Tensor) -> list[Tensor]:
        leaves = {
            name: value.detach().requires_grad_() for name, value in zip(problem.layout.names, params, strict=True)
        }
        with torch.enable_grad():
            loss, outputs = forward(leaves, inputs, targets)
            grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        if any(grad is None and decayed for grad, decayed in zip(grads, decays, strict=False)):
            raise RuntimeError("no gradient reaches one of its parameters, which may be otherwise in other steps")
        found = [torch.zeros_like(value) if grad is None else grad for value, grad in zip(params, grads, strict=True)]
        return [loss.detach(), outputs.detach(), *found]

    def views(row: Tensor) -> dict[str, Tensor]:
        return problem.layout.views(row)

    row = problem.layout.flatten(dict(module.named_parameters()))
    here, there = (row, inputs, targets), (perturbed(row), inputs.flip(0), targets.flip(0))
    check_forward(module, lambda row, *batch: forward(views(row), *batch), here, there)
    traced = make_fx(gradients)(list(views(row).values()), inputs, targets)
    check_shapes(traced.graph.nodes)
    written = ScriptText(problem, traced, _has_native)
    trained = {value.data_ptr() for value in module.parameters() if value.requires_grad}
    if any(value.data_ptr() in trained for value in written.constants):  # as when a checkpoint computes it once more
        raise RuntimeError("its backward pass reads the module's own parameters")
    unit = torch.jit.CompilationUnit(written.source())
    return ScriptedSteps(problem, unit.steps, written.constants)


def compile_ahead(module: nn.Module) -> list[str]:
    """Compile what scripted steps of a module are going to use, which may take some seconds the first time.

    Returns:
        Lines for a person where they have to do without.
    """
    norms = any(isinstance(part, nn.GroupNorm) for part in module.modules())
    if norms or any(value.dim() == 2 and value.numel() >= MERGED_WEIGHT for value in module.parameters()):
        _has_native()
        return native_lines()
    return []


@functools.cache
def _has_native() -> bool:
    missing = load_native()
    if missing is not None:
        logging.getLogger(__name__).info("threaded steps do without operations in C++: %s", missing)
    return missing is None


def _channels_last(value: Tensor) -> Tensor:
    # a clone has that layout's strides with one channel too, where `contiguous` leaves them as they are
    return value.clone(memory_format=torch.channels_last) if value.dim() == 4 else value
