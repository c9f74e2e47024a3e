"""Local steps by plain torch: the user's own module, its optimizer step written out, one client after the other."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

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
"""What a module or a loss raises on samples that it does not take."""


@dataclass
class Trace:
    """What some steps of one client leave.

    losses: one a step        rows: the parameters [n_params] after each        state: buffers that forward changes
    """

    losses: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class PlainModule:
    """The module as the user gave it, on the run's device and in its dtype.

    user_module: the module that the user gave, which a closure may hold, or None
    user_state: its state before the first steps
    given: {id: name} of its tensors
    labels: lowest and highest label that must be an output's number, or None
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
        """A copy of it in training."""
        own = copy.deepcopy(self.module)
        set_modes(own, self.modes)
        return PlainClient(self, own, number)


class PlainClient:
    """A copy of the module that takes the steps of one client.

    Attributes:
        module: The copy.
        drawn: Whether a step has drawn random numbers that client_random covers.
        reached: Names of tensors of the user's own module that a step has computed with.
        hooked: Whether gradients pass through hooks, of parts or of tensors.
        made: Tensors that the last step has made itself to take derivatives by.
        seeds: Name of a function by which a step sets the state of torch's random numbers, or None.
    """

    def __init__(self, plain: PlainModule, module: nn.Module, number: int) -> None:
        self.module, self._plain, self._number = module, plain, number
        self.drawn = False
        self.reached: set[str] = set()
        self.made: list[Tensor] = []
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
        with _Leaves() as made, draws, own, SeedingWatch() as watch:
            yield
        self.made = made.found
        self.seeds = self.seeds or watch.setter
        self.drawn |= draws.drawn
        self.reached |= own.used
        self.hooked |= own.hooked

    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Loss and outputs of one batch.

        Raises:
            UsageError: That names what fails: the model, the loss, or what they return.
        """
        flag, numerics = self._plain.flag, self._plain.numerics
        with self._modes(step):
            try:
                with numerics.autocast():
                    outputs = self.module(inputs.clone())  # which it may change
            except FAILURES as error:
                raise UsageError(f"{flag}: fails on a batch of {_words(inputs)}: {one_line(error)}") from error
            if not isinstance(outputs, Tensor):
                kind = type(outputs).__name__
                raise UsageError(f"{flag}: returns {kind}, not one tensor; wrap it in a module that returns one")
            self._check_labels(outputs, targets)
            full = numerics.to_param_dtype(outputs)
            try:
                with self._mirror.expose():
                    value = self._plain.loss(full, targets)
            except FAILURES as error:
                about = f"outputs of {_words(outputs)} and targets of {_words(targets)}{self._culprit(full, targets)}"
                raise UsageError(f"loss: fails on {about}: {one_line(error)}") from error
        return self._checked(value), outputs

    def _check_labels(self, outputs: Tensor, targets: Tensor) -> None:
        labels = self._plain.labels
        if labels is None or targets.dim() != 1 or outputs.dim() != 2:
            return
        if labels[0] < 0 or labels[1] >= outputs.shape[1]:
            raise UsageError(
                f"{self._plain.flag}: has {outputs.shape[1]} outputs, but labels go from {labels[0]} to {labels[1]}"
            )

    def _culprit(self, outputs: Tensor, targets: Tensor) -> str:
        """The target of the one sample that a loss does not take, where it takes others."""
        wrong = [place for place in range(len(targets)) if not self._takes(outputs, targets, place)]
        if 0 < len(wrong) < len(targets) and targets[wrong[0]].numel() == 1:
            return f", because of the target {targets[wrong[0]].item()}"
        return ""

    def _takes(self, outputs: Tensor, targets: Tensor, place: int) -> bool:
        try:
            self._plain.loss(outputs[place : place + 1], targets[place : place + 1])
        except FAILURES:
            return False
        return True

    def _checked(self, value: object) -> Tensor:
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
        """Of a loss, by the names of the parameters that require one; None where it does not depend on them."""
        parameters = {name: each for name, each in self.module.named_parameters() if each.requires_grad}
        for each in parameters.values():
            each.grad = None
        try:
            value.backward()  # type: ignore[no-untyped-call]
        except FAILURES as error:
            raise UsageError(f"{self._plain.flag}: its backward pass fails: {one_line(error)}") from error
        grads = {name: each.grad for name, each in parameters.items()}
        for each in parameters.values():
            each.grad = None
        return {
            name: grad if grad is None or grad.layout == torch.strided else grad.to_dense()
            for name, grad in grads.items()
        }

    @torch.no_grad()
    def descend(self, gradients: Mapping[str, Tensor | None], rate: float) -> None:
        """One step of SGD, without momentum or weight decay."""
        for name, parameter in self.module.named_parameters():
            gradient = gradients.get(name)
            if gradient is not None:
                parameter.sub_(gradient, alpha=rate)

    def take(
        self,
        batches: Sequence[tuple[Tensor, Tensor]],
        steps: range,
        rate: float,
        names: Sequence[str],
        trace: Trace,
    ) -> None:
        """Take `steps` of the batches, and add the losses and the parameters called `names` to the trace."""
        for step in steps:
            value, _ = self.forward(*batches[step], step)
            self.descend(self.gradients(value), rate)
            trace.losses.append(value.detach())
            trace.rows.append(self.row(names))

    def row(self, names: Sequence[str]) -> Tensor:
        """Return a copy of the parameters called `names`, as [n_params]."""
        parameters = dict(self.module.named_parameters())
        return torch.cat([parameters[name].detach().reshape(-1) for name in names])


class _Leaves(TorchFunctionMode):
    """Finds the tensors that are made to require a gradient: x.clone().requires_grad_(), zeros(requires_grad=True)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        before = bool(args) and isinstance(args[0], Tensor) and args[0].requires_grad
        result = func(*args, **(kwargs or {}))
        made = args[0] if func is Tensor.requires_grad.__set__ else result  # type: ignore[attr-defined]
        if not before and isinstance(made, Tensor) and made.requires_grad and made.is_leaf:
            self.found.append(made)
        return result


def foreign_leaves(value: Tensor, module: nn.Module, made: Sequence[Tensor] = ()) -> list[Tensor]:
    """Tensors that a loss has a gradient for and that are neither parameters of the module nor were `made`."""
    own = {id(parameter) for parameter in (*module.parameters(), *made)}
    found, seen, todo = [], set(), [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and id(leaf) not in own:
            found.append(leaf)
        todo += [following for following, _ in node.next_functions]
    return found


def _words(value: Tensor) -> str:
    return f"shape {tuple(value.shape)} ({_name(value.dtype)})"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
