"""Local SGD in plain torch on a user's own module: the judge of every executor.

It shares nothing with fastlocal. The order of samples is stated here a second time, as documented: epoch e is
torch.randperm(n) of a generator seeded with seed + e, and at local step t of the epoch client c takes the positions
[(t * clients + c) * batch, ... + batch). Each client has its own parameters, buffers, attributes and optimizer of
torch.optim. A client trains the user's module itself, with what is the client's loaded into it, so that a closure over
the module, a hook or a list of its parameters means the client's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Loss = Callable[[Tensor, Tensor], Tensor]
Data = tuple[Tensor, Tensor]

OWN = frozenset(vars(nn.Module())) - {"training"}
"""What torch itself keeps in a module's __dict__ and clients share: parameters, buffers, parts and hooks."""


@dataclass(frozen=True)
class LossOf:
    """A loss that holds the module which it is given: make(module) -> loss."""

    make: Callable[[nn.Module], Loss]


@dataclass(frozen=True)
class Recipe:
    """What a run of 4 rounds of 3 steps of 4 clients leaves open."""

    clients: int = 4
    rounds: int = 4
    local_steps: int = 3
    batch_size: int = 4
    lr: float = 0.1
    client_optimizer: str = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """The returned model: means over clients, client 0's where they are not floating.

    parameters, buffers: by name, without the statistics of BatchNorms in training mode, which fastlocal re-estimates
    losses: mean over clients and steps, of each round
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    losses: list[float]


class _Client:
    """What is one client's own while the others train.

    The copies of attributes and buffers know the module's parameters and parts as they are, and keep what they share.
    """

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        self.module = module
        self.values = [value.detach().clone() for value in module.parameters()]
        kept = [*module.modules(), *module.parameters()]
        held = [vars(part) for part in module.modules()]
        kept += [value for names in held for value in names.values() if isinstance(value, Tensor) and not value.is_leaf]
        memo = {id(one): one for one in kept}
        self.parts: list[dict[str, Any]] = copy.deepcopy([_own(part) for part in module.modules()], memo)
        trained = [value for value in module.parameters() if value.requires_grad]
        settings: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
        if recipe.client_optimizer == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(trained, **settings)
        else:
            settings |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
            self.optimizer = torch.optim.SGD(trained, **settings)

    @torch.no_grad()
    def load(self) -> None:
        for parameter, value in zip(self.module.parameters(), self.values, strict=True):
            parameter.data.copy_(value)
        for part, own in zip(self.module.modules(), self.parts, strict=True):
            names = vars(part)
            for name in [name for name in names if name not in OWN]:
                del names[name]
            names.update({name: value for name, value in own.items() if name != "_buffers"})
            part._buffers = own["_buffers"]

    @torch.no_grad()
    def store(self) -> None:
        self.values = [value.detach().clone() for value in self.module.parameters()]
        self.parts = [_own(part) for part in self.module.modules()]


def _own(part: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(part).items() if name not in OWN} | {"_buffers": dict(part._buffers)}


def plain_train(module: nn.Module, data: Data, loss: Loss | LossOf, recipe: Recipe) -> Trained:
    """Train in float64; `module` is changed."""
    module = to_double(module)
    set_modes(module)
    loss = loss.make(module) if isinstance(loss, LossOf) else loss
    inputs, targets = (value.double() if value.is_floating_point() else value for value in data)
    clients = [_Client(module, recipe) for _ in range(recipe.clients)]
    losses = []
    for number in range(recipe.rounds):
        steps = range(number * recipe.local_steps, (number + 1) * recipe.local_steps)
        total = 0.0
        for place, client in enumerate(clients):
            client.load()
            for ids in sample_ids(len(inputs), place, steps, recipe):
                module.zero_grad()
                value = loss(module(inputs[ids]), targets[ids])
                value.backward()
                client.optimizer.step()
                total += value.item()
            client.store()
        for values in zip(*(client.values for client in clients), strict=True):
            mean = _mean(values)
            for value in values:
                value.copy_(mean)
        losses.append(total / (recipe.clients * recipe.local_steps))
    return _returned(module, clients, losses)


def sample_ids(samples: int, client: int, steps: range, recipe: Recipe) -> Iterator[Tensor]:
    """The samples of one client at these steps, counted from the start of the run."""
    per_epoch = samples // (recipe.clients * recipe.batch_size)
    for step in steps:
        epoch, within = divmod(step, per_epoch)
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(recipe.seed + epoch))
        start = (within * recipe.clients + client) * recipe.batch_size
        yield order[start : start + recipe.batch_size]


def to_double(module: nn.Module) -> nn.Module:
    """The module with real and complex numbers of 64 bits each."""
    wide = {True: torch.complex128, False: torch.float64}
    return module._apply(
        lambda value: value.to(wide[value.is_complex()]) if value.is_complex() or value.is_floating_point() else value
    )


def set_modes(module: nn.Module) -> None:
    """Training mode as module.train() sets it; in a module in training mode, parts in evaluation mode stay in it."""
    kept = [part for part in module.modules() if module.training and not part.training]
    module.train()
    for part in kept:
        part.training = False


def estimated_buffers(module: nn.Module) -> set[str]:
    """Running statistics that a step in the present modes changes."""
    return {
        f"{name}.{buffer}".lstrip(".")
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.training
        for buffer in part._buffers
    }


def _mean(values: Sequence[Tensor]) -> Tensor:
    """The mean, of integers the first value."""
    floating = values[0].is_floating_point() or values[0].is_complex()
    return torch.stack(list(values)).mean(dim=0) if floating else values[0]


def _returned(module: nn.Module, clients: list[_Client], losses: list[float]) -> Trained:
    everyone = []
    for client in clients:
        client.load()
        everyone.append({name: value.clone() for name, value in module.named_buffers()})
    skipped = estimated_buffers(module)
    buffers = {}
    for name in everyone[0].keys() - skipped:
        buffers[name] = _mean([own[name] for own in everyone])
    parameters = {name: value.detach().clone() for name, value in module.named_parameters()}
    return Trained(parameters, buffers, losses)
