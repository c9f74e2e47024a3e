"""Local steps by plain torch: the user's module with an explicit SGD step, one client after the other."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..common.errors import UsageError, one_line
from ..models.client_random.mode import ClientRandom
from ..models.mirror import Mirror
from ..models.modes import Modes, set_modes
from ..models.own_tensors import OwnTensors, tensors_of
from ..params.losses import Loss
from ..params.precision import Numerics
from .seeding import SeedingWatch
from .side_effects import UserModuleState

FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""Exceptions of a module or a loss on unsupported samples."""


@dataclass
class Trace:
    """Results of several steps of one client.

    Attributes:
        losses: Loss of each step.
        rows: Parameters [n_params] after each step.
        state: Buffers that a forward pass changes, after the last step.
    """

    losses: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class PlainModule:
    """A copy of the user's module on the run's device and in its dtype, with the loss.

    Attributes:
        user_module: The user's own module, which a closure may refer to, or None.
        user_state: State of `user_module` before the first steps.
        tensor_names: {id: name} of the tensors of `user_module`.
        labels: Lowest and highest label, if labels are numbers of outputs; or None.
        seed: Seed of the run.
        flag: Flag or argument that names the model, for messages.
    """

    module: nn.Module
    modes: Modes
    loss: Loss
    numerics: Numerics
    user_module: nn.Module | None
    user_state: UserModuleState
    tensor_names: Mapping[int, str]
    labels: tuple[int, int] | None
    seed: int
    flag: str

    def client(self, number: int) -> PlainClient:
        """Return client `number` with a copy of the module in training modes."""
        own = copy.deepcopy(self.module)
        set_modes(own, self.modes)
        return PlainClient(self, own, number)


class PlainClient:
    """The steps of one client with a copy of the module.

    Attributes:
        module: The copy.
        drawn: Whether a step drew random numbers that client_random covers.
        reached: Names of the tensors of the user's own module that a step used.
        hooked: Whether there are hooks on gradients, of parts or of tensors.
        leaves: Tensors that require a gradient and that the last step created.
        seeds: Name of a function by which a step sets the state of torch's random numbers, or None.
    """

    def __init__(self, plain: PlainModule, module: nn.Module, number: int) -> None:
        self.module, self._plain, self._number = module, plain, number
        self.drawn = False
        self.reached: set[str] = set()
        self.leaves: list[Tensor] = []
        self.seeds: str | None = None
        self._mirror = Mirror(module, plain.user_module, None)
        self.hooked = any(part._backward_hooks or part._backward_pre_hooks for part in module.modules())

    @contextlib.contextmanager
    def _modes(self, step: int) -> Iterator[None]:
        device = self._plain.numerics.device
        draws = ClientRandom(
            self._plain.seed, torch.tensor(self._number, device=device), torch.tensor(step, device=device)
        )
        own = OwnTensors(self._plain.tensor_names, tensors_of(self.module))
        with _LeafRecorder() as recorder, draws, own, SeedingWatch() as watch:
            yield
        self.leaves = recorder.leaves
        self.seeds = self.seeds or watch.setter
        self.drawn |= draws.drawn
        self.reached |= own.used
        self.hooked |= own.hooked

    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the loss and the outputs of one batch.

        Raises:
            UsageError: The model or the loss fails, or returns a value that cannot be trained.
        """
        flag, numerics = self._plain.flag, self._plain.numerics
        with self._modes(step):
            try:
                with numerics.autocast():
                    outputs = self.module(inputs.clone())  # a module may write to its inputs
            except FAILURES as error:
                raise UsageError(f"{flag}: fails on a batch of {_describe(inputs)}: {one_line(error)}") from error
            if not isinstance(outputs, Tensor):
                kind = type(outputs).__name__
                raise UsageError(f"{flag}: returns {kind}, not one tensor; wrap it in a module that returns one")
            self._check_labels(outputs, targets)
            full = numerics.to_param_dtype(outputs)
            try:
                with self._mirror.expose():
                    value = self._plain.loss(full, targets)
            except FAILURES as error:
                where = f"outputs of {_describe(outputs)} and targets of {_describe(targets)}"
                where += self._culprit(full, targets)
                raise UsageError(f"loss: fails on {where}: {one_line(error)}") from error
        return self._check_loss(value), outputs

    def _check_labels(self, outputs: Tensor, targets: Tensor) -> None:
        labels = self._plain.labels
        if labels is None or targets.dim() != 1 or outputs.dim() != 2:
            return
        if labels[0] < 0 or labels[1] >= outputs.shape[1]:
            raise UsageError(
                f"{self._plain.flag}: has {outputs.shape[1]} outputs, but labels go from {labels[0]} to {labels[1]}"
            )

    def _culprit(self, outputs: Tensor, targets: Tensor) -> str:
        """Name the first target on which the loss fails, if it accepts others."""
        wrong = [place for place in range(len(targets)) if not self._accepts(outputs, targets, place)]
        if 0 < len(wrong) < len(targets) and targets[wrong[0]].numel() == 1:
            return f", because of the target {targets[wrong[0]].item()}"
        return ""

    def _accepts(self, outputs: Tensor, targets: Tensor, place: int) -> bool:
        try:
            self._plain.loss(outputs[place : place + 1], targets[place : place + 1])
        except FAILURES:
            return False
        return True

    def _check_loss(self, value: object) -> Tensor:
        if not isinstance(value, Tensor):
            raise UsageError(f"loss: returns {type(value).__name__}, not a tensor that a gradient comes from")
        if value.dim():
            raise UsageError(f"loss: returns shape {tuple(value.shape)}; it must return one number per batch")
        if not value.is_floating_point():
            raise UsageError(f"loss: returns {_name(value.dtype)}; it must return a real floating number")
        if not value.requires_grad:
            raise UsageError(
                "loss: no gradient comes from it to the model: something on the way is detached, an integer, or "
                "computed within no_grad()"
            )
        return value

    def gradients(self, value: Tensor) -> dict[str, Tensor | None]:
        """Return the gradients of a loss by parameter name, or None for parameters that it does not depend on."""
        parameters = {name: each for name, each in self.module.named_parameters() if each.requires_grad}
        for each in parameters.values():
            each.grad = None
        failure: Exception | None = None
        recorder = _DrawRecorder()
        # only what a forward pass draws can be drawn again; the first use of such a mode imports sympy
        with recorder if self.drawn else contextlib.nullcontext():
            try:
                value.backward()  # type: ignore[no-untyped-call]
            except FAILURES as error:
                failure = error
        if recorder.drawn:  # also where the same shows as a failure
            raise UsageError(
                f"{self._plain.flag}: draws random numbers in its backward pass, as dropout within "
                "torch.utils.checkpoint does; they would not be those of its forward pass, so leave out the checkpoint "
                "or the dropout"
            )
        if failure is not None:
            raise UsageError(f"{self._plain.flag}: its backward pass fails: {one_line(failure)}") from failure
        grads = {name: each.grad for name, each in parameters.items()}
        for each in parameters.values():
            each.grad = None
        return {
            name: grad if grad is None or grad.layout == torch.strided else grad.to_dense()
            for name, grad in grads.items()
        }

    @torch.no_grad()
    def descend(self, gradients: Mapping[str, Tensor | None], rate: float) -> None:
        """Take one step of SGD without momentum or weight decay."""
        for name, parameter in self.module.named_parameters():
            gradient = gradients.get(name)
            if gradient is not None:
                parameter.sub_(gradient, alpha=rate)

    def train(
        self,
        batches: Sequence[tuple[Tensor, Tensor]],
        steps: range,
        rate: float,
        names: Sequence[str],
        trace: Trace,
    ) -> None:
        """Take the steps `steps` on `batches`, and add the losses and the parameters `names` to a trace."""
        for step in steps:
            value, _ = self.forward(*batches[step], step)
            self.descend(self.gradients(value), rate)
            trace.losses.append(value.detach())
            trace.rows.append(self.row(names))

    def row(self, names: Sequence[str]) -> Tensor:
        """Return a copy of the parameters `names`, [n_params]."""
        parameters = dict(self.module.named_parameters())
        return torch.cat([parameters[name].detach().reshape(-1) for name in names])


class _LeafRecorder(TorchFunctionMode):
    """Record new tensors that require a gradient: x.clone().requires_grad_(), zeros(requires_grad=True)."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        before = bool(args) and isinstance(args[0], Tensor) and args[0].requires_grad
        result = func(*args, **(kwargs or {}))
        leaf = args[0] if func is Tensor.requires_grad.__set__ else result  # type: ignore[attr-defined]
        if not before and isinstance(leaf, Tensor) and leaf.requires_grad and leaf.is_leaf:
            self.leaves.append(leaf)
        return result


class _DrawRecorder(TorchDispatchMode):
    """Notice operations that draw from torch's generators."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            names = (argument.name for argument in func._schema.arguments)
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            self.drawn |= given.get("dropout_p", 1.0) > 0.0  # attention has the tag without dropout too
        return func(*args, **(kwargs or {}))


def foreign_leaves(value: Tensor, module: nn.Module, leaves: Sequence[Tensor] = ()) -> list[Tensor]:
    """Return the leaves of autograd's graph that are neither parameters of the module nor among `leaves`."""
    own = {id(parameter) for parameter in (*module.parameters(), *leaves)}
    foreign, visited, todo = [], set(), [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and id(leaf) not in own:
            foreign.append(leaf)
        todo += [following for following, _ in node.next_functions]
    return foreign


def _describe(value: Tensor) -> str:
    return f"shape {tuple(value.shape)} ({_name(value.dtype)})"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
