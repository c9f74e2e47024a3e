"""Baselines of the training benches: loops over modules, and plain vmap."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from bench.common import cores
from bench.training_case import LEARNING_RATE, MOMENTUM
from fastlocal.common.machine import keep_freed_memory
from fastlocal.params.losses import cross_entropy
from fastlocal.params.precision import Numerics

WEIGHT_DECAY = 5e-4


@dataclass(frozen=True)
class Task:
    """Work of a baseline.

    Attributes:
        module: The module with the start weights, in training mode.
        inputs: Normalised inputs of the whole data set, on the device.
        targets: Targets of the whole data set, on the device.
        clients: Number of clients.
        numerics: Device and dtypes.
        momentum: Momentum of SGD.
    """

    module: nn.Module
    inputs: Tensor
    targets: Tensor
    clients: int
    numerics: Numerics
    momentum: float = MOMENTUM

    def loss(self, module: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        with self.numerics.autocast():
            outputs = module(inputs)
        return cross_entropy(self.numerics.to_param_dtype(outputs), targets)

    def optimizer(self, parameters: Iterable[Tensor], *, foreach: bool) -> torch.optim.SGD:
        """Return torch's SGD with the settings of the case; foreach=False takes torch's default."""
        options = {"foreach": True} if foreach else {}
        return torch.optim.SGD(parameters, LEARNING_RATE, momentum=self.momentum, weight_decay=WEIGHT_DECAY, **options)


class Baseline(Protocol):
    """A way to train all clients of a task."""

    def round(self, sample_ids: Tensor) -> None:
        """Train one communication round and average; `sample_ids` is int64 [local_steps, clients, batch]."""

    def flat_params(self) -> Tensor:
        """Return the averaged parameters, [n_params]."""


class Loop:
    """One module and one optimizer per client, one client after the other.

    Args:
        task: What is trained.
        read_losses: Read every loss to the host, as the reference implementation does.
        foreach: Use torch's foreach optimizer.
    """

    def __init__(self, task: Task, *, read_losses: bool, foreach: bool) -> None:
        self.task, self.read_losses = task, read_losses
        self.modules = [copy.deepcopy(task.module) for _ in range(task.clients)]
        self.parameters = [list(module.parameters()) for module in self.modules]
        self.optimizers = [task.optimizer(parameters, foreach=foreach) for parameters in self.parameters]

    def train(self, sample_ids: Tensor) -> None:
        """Take the local steps of all clients."""
        task, losses = self.task, []
        for client, (module, optimizer) in enumerate(zip(self.modules, self.optimizers, strict=True)):
            for ids in sample_ids[:, client]:
                optimizer.zero_grad()
                loss = task.loss(module, task.inputs[ids], task.targets[ids])
                loss.backward()
                optimizer.step()
                losses.append(loss.item() if self.read_losses else loss.detach())

    @torch.no_grad()
    def average(self) -> None:
        """Set the parameters of all clients to their mean."""
        for values in zip(*self.parameters, strict=True):
            mean = torch.stack(values).mean(dim=0)
            for value in values:
                value.copy_(mean)

    def round(self, sample_ids: Tensor) -> None:
        """Train a round and average."""
        self.train(sample_ids)
        self.average()

    def flat_params(self) -> Tensor:
        """Return the averaged parameters."""
        return torch.cat([value.detach().flatten() for value in self.parameters[0]])


class Vmap:
    """All clients at once by functional_call and vmap(grad), with torch's SGD on the stacked parameters."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.module = copy.deepcopy(task.module)
        self.stacked = {
            name: value.detach().unsqueeze(0).repeat(task.clients, *[1] * value.dim())
            for name, value in self.module.named_parameters()
        }
        self.optimizer = task.optimizer(list(self.stacked.values()), foreach=True)
        self._step = vmap(grad_and_value(self._loss), randomness="different")

    def _loss(self, values: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return self.task.loss(lambda x: functional_call(self.module, values, (x,)), inputs, targets)

    def round(self, sample_ids: Tensor) -> None:
        """Train a round and average."""
        for ids in sample_ids:
            grads, _ = self._step(self.stacked, self.task.inputs[ids], self.task.targets[ids])
            for name, value in self.stacked.items():
                value.grad = grads[name]
            self.optimizer.step()
        for value in self.stacked.values():
            value.copy_(value.mean(dim=0, keepdim=True).expand_as(value))

    def flat_params(self) -> Tensor:
        """Return the averaged parameters."""
        return torch.cat([value[0].flatten() for value in self.stacked.values()])


class ProcessPerCore:
    """One single-threaded process per core, looping over its share of the clients; shared memory holds the mean."""

    def __init__(self, task: Task) -> None:
        n_params = sum(value.numel() for value in task.module.parameters())
        workers = min(cores(), task.clients)
        self._shares = [list(range(task.clients))[worker::workers] for worker in range(workers)]
        self._sums = torch.zeros(workers, n_params, dtype=task.numerics.dtype).share_memory_()
        self._mean = torch.zeros(n_params, dtype=task.numerics.dtype).share_memory_()
        self._clients = task.clients
        context = torch.multiprocessing.get_context("spawn")
        self._pipes: list[Any] = []
        for worker, share in enumerate(self._shares):
            parent, child = context.Pipe()
            part = replace(task, clients=len(share))
            arguments = (part, child, self._sums[worker], self._mean)
            context.Process(target=_train_share, args=arguments, daemon=True).start()
            self._pipes.append(parent)

    def _send(self, messages: Iterable[object]) -> None:
        """Send each worker its message and wait until all have acted on it."""
        for pipe, message in zip(self._pipes, messages, strict=True):
            pipe.send(message)
        for pipe in self._pipes:
            pipe.recv()

    def round(self, sample_ids: Tensor) -> None:
        """Train a round and average."""
        self._send(sample_ids[:, share] for share in self._shares)
        torch.div(self._sums.sum(dim=0), self._clients, out=self._mean)
        self._send(["take the mean"] * len(self._pipes))

    def flat_params(self) -> Tensor:
        """Return the averaged parameters."""
        return self._mean


def _train_share(task: Task, pipe: Connection, total: Tensor, mean: Tensor) -> None:
    """Worker of ProcessPerCore: for sample ids train and write the sum of the rows, for a string take the mean."""
    torch.set_num_threads(1)
    keep_freed_memory()
    loop = Loop(task, read_losses=False, foreach=True)
    while True:
        try:
            message = pipe.recv()
        except EOFError:  # the parent has ended
            return
        if isinstance(message, Tensor):
            loop.train(message)
            rows = [torch.cat([value.detach().flatten() for value in parameters]) for parameters in loop.parameters]
            torch.sum(torch.stack(rows), dim=0, out=total)
        else:
            with torch.no_grad():
                for parameters in loop.parameters:
                    for value, new in zip(parameters, mean.split([one.numel() for one in parameters]), strict=True):
                        value.copy_(new.view_as(value))
        pipe.send("done")


BASELINES: dict[str, Callable[[Task], Baseline]] = {
    "loop, sync per step": lambda task: Loop(task, read_losses=True, foreach=False),
    "loop, foreach": lambda task: Loop(task, read_losses=False, foreach=True),
    "loop, a process per core": ProcessPerCore,
    "vmap": Vmap,
}
"""Baselines by their names in tables."""
REFERENCE = "loop, sync per step"
"""The baseline that trains as the reference implementation does; ratios are relative to it."""
CPU_ONLY = ("loop, a process per core",)
OWN_PREFIX = "fastlocal "
"""Beginning of the names of fastlocal's own variants, as in "fastlocal threaded workers=1"."""
