"""Training the same clients as other code does: loops over modules, and plain vmap.

Every way has `round(sample_ids) -> None`, which trains a communication round and averages, and `row()`, the averaged
parameters. Sample ids are int64 [local_steps, clients, batch]; inputs are normalised beforehand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from bench.case import MOMENTUM, RATE, cores
from fastlocal.common.machine import keep_freed_memory
from fastlocal.params.losses import cross_entropy
from fastlocal.params.precision import Numerics

WEIGHT_DECAY = 5e-4
STREAMS = 4


@dataclass(frozen=True)
class Task:
    """module: with the start weights, in training mode        inputs, targets: the whole data set on the device"""

    module: nn.Module
    inputs: Tensor
    targets: Tensor
    clients: int
    numerics: Numerics
    momentum: float = MOMENTUM

    def loss(self, module: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        with self.numerics.autocast():
            outputs = module(inputs)
        return cross_entropy(self.numerics.to_param_dtype(outputs), targets)

    def optimizer(self, parameters: Iterable[Tensor], **kind: bool) -> torch.optim.SGD:
        return torch.optim.SGD(parameters, RATE, momentum=self.momentum, weight_decay=WEIGHT_DECAY, **kind)


class Way(Protocol):
    def round(self, sample_ids: Tensor) -> None: ...

    def row(self) -> Tensor: ...


class Modules:
    """One module and one optimizer per client, one client after the other.

    sync: read every loss, as the reference does        kind: foreach=True or fused=True
    """

    def __init__(self, task: Task, *, sync: bool, compiled: bool = False, **kind: bool) -> None:
        self.task, self.sync = task, sync
        self.modules = [copy.deepcopy(task.module) for _ in range(task.clients)]
        self.parameters = [list(module.parameters()) for module in self.modules]
        self.optimizers = [task.optimizer(parameters, **kind) for parameters in self.parameters]
        self._named = [dict(module.named_parameters()) for module in self.modules]
        self._loss = torch.compile(self._stateless, dynamic=False) if compiled else None

    def _stateless(self, values: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """The same program for every client, so that it is compiled once."""
        return self.task.loss(lambda x: functional_call(self.modules[0], values, (x,)), inputs, targets)

    def train(self, sample_ids: Tensor) -> None:
        task, losses = self.task, []
        for client, (module, optimizer) in enumerate(zip(self.modules, self.optimizers, strict=True)):
            for ids in sample_ids[:, client]:
                inputs, targets = task.inputs[ids], task.targets[ids]
                optimizer.zero_grad()
                if self._loss is not None:
                    loss = self._loss(self._named[client], inputs, targets)
                else:
                    loss = task.loss(module, inputs, targets)
                loss.backward()
                optimizer.step()
                losses.append(loss.item() if self.sync else loss.detach())

    @torch.no_grad()
    def average(self) -> None:
        for same in zip(*self.parameters, strict=True):
            mean = torch.stack([value.detach() for value in same]).mean(dim=0)
            for value in same:
                value.copy_(mean)

    def round(self, sample_ids: Tensor) -> None:
        self.train(sample_ids)
        self.average()

    def row(self) -> Tensor:
        return torch.cat([value.detach().flatten() for value in self.parameters[0]])


class Vmapped:
    """All clients by functional_call and vmap(grad), without chunks; torch's SGD on the stacked parameters."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.module = copy.deepcopy(task.module)
        parameters = dict(self.module.named_parameters())
        self.stacked = {
            name: value.detach().unsqueeze(0).repeat(task.clients, *[1] * value.dim())
            for name, value in parameters.items()
        }
        self.optimizer = task.optimizer(list(self.stacked.values()), foreach=True)
        self._step = vmap(grad_and_value(self._loss), randomness="different")

    def _loss(self, values: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return self.task.loss(lambda x: functional_call(self.module, values, (x,)), inputs, targets)

    def round(self, sample_ids: Tensor) -> None:
        for ids in sample_ids:
            grads, _ = self._step(self.stacked, self.task.inputs[ids], self.task.targets[ids])
            for name, value in self.stacked.items():
                value.grad = grads[name]
            self.optimizer.step()
        for value in self.stacked.values():
            value.copy_(value.mean(dim=0, keepdim=True).expand_as(value))

    def row(self) -> Tensor:
        return torch.cat([value[0].flatten() for value in self.stacked.values()])


class Graphed(Modules):
    """On a GPU: each client's step is a CUDA graph of its own, and clients take turns on several streams."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, sync=False, foreach=True)
        self._streams = [torch.cuda.Stream() for _ in range(STREAMS)]
        self._graphs: list[tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = []

    def _capture(self, client: int, batch: int) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """The step of a client, whose state is as before when the capture is done."""
        task, parameters, optimizer = self.task, self.parameters[client], self.optimizers[client]
        inputs, targets = task.inputs[:1].repeat(batch, 1, 1, 1), task.targets[:1].repeat(batch)
        before = [value.detach().clone() for value in parameters]

        def step() -> None:
            optimizer.zero_grad(set_to_none=False)
            task.loss(self.modules[client], inputs, targets).backward()
            optimizer.step()

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        with torch.no_grad():
            for value, old in zip(parameters, before, strict=True):
                value.copy_(old)
                for state in optimizer.state[value].values():
                    if isinstance(state, Tensor):
                        state.zero_()
        return graph, inputs, targets

    def train(self, sample_ids: Tensor) -> None:
        if not self._graphs:
            self._graphs = [self._capture(client, sample_ids.shape[-1]) for client in range(self.task.clients)]
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream())
        for client, (graph, inputs, targets) in enumerate(self._graphs):
            with torch.cuda.stream(self._streams[client % STREAMS]):
                for ids in sample_ids[:, client]:
                    torch.index_select(self.task.inputs, 0, ids, out=inputs)
                    torch.index_select(self.task.targets, 0, ids, out=targets)
                    graph.replay()
        for stream in self._streams:
            torch.cuda.current_stream().wait_stream(stream)


class Processes:
    """One process of one thread per core, each looping over its share of the clients; they average in shared memory."""

    def __init__(self, task: Task) -> None:
        n_params = sum(value.numel() for value in task.module.parameters())
        workers = min(cores(), task.clients)
        shares = [list(range(task.clients))[worker::workers] for worker in range(workers)]
        self._shares = shares
        self._sums = torch.zeros(workers, n_params, dtype=task.numerics.dtype).share_memory_()
        self._mean = torch.zeros(n_params, dtype=task.numerics.dtype).share_memory_()
        self._clients = task.clients
        context = torch.multiprocessing.get_context("spawn")
        self._pipes: list[Any] = []
        for worker, share in enumerate(shares):
            here, there = context.Pipe()
            part = Task(task.module, task.inputs, task.targets, len(share), task.numerics, task.momentum)
            context.Process(target=_work, args=(part, there, self._sums[worker], self._mean), daemon=True).start()
            self._pipes.append(here)

    def _tell(self, messages: Iterable[object]) -> None:
        for pipe, message in zip(self._pipes, messages, strict=True):
            pipe.send(message)
        for pipe in self._pipes:
            pipe.recv()

    def round(self, sample_ids: Tensor) -> None:
        self._tell(sample_ids[:, share] for share in self._shares)
        torch.div(self._sums.sum(dim=0), self._clients, out=self._mean)
        self._tell(["take the mean"] * len(self._pipes))

    def row(self) -> Tensor:
        return self._mean


def _work(task: Task, pipe: Connection, total: Tensor, mean: Tensor) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    own = Modules(task, sync=False, foreach=True)
    while True:
        try:
            message = pipe.recv()
        except EOFError:  # whoever asked is gone
            return
        if isinstance(message, Tensor):
            own.train(message)
            rows = [torch.cat([value.detach().flatten() for value in parameters]) for parameters in own.parameters]
            torch.sum(torch.stack(rows), dim=0, out=total)
        else:
            with torch.no_grad():
                for parameters in own.parameters:
                    for value, new in zip(parameters, mean.split([one.numel() for one in parameters]), strict=True):
                        value.copy_(new.view_as(value))
        pipe.send("done")


LOOPS: dict[str, Callable[[Task], Way]] = {
    "loop, sync per step": lambda task: Modules(task, sync=True),
    "loop, foreach": lambda task: Modules(task, sync=False, foreach=True),
    "loop, fused": lambda task: Modules(task, sync=False, fused=True),
    "loop, compiled": lambda task: Modules(task, sync=False, compiled=True, foreach=True),
    "loop, a process per core": Processes,
    "loop, graphs and streams": Graphed,
    "vmap": Vmapped,
}
"""By their names in tables; the first is what the reference does."""
REFERENCE = "loop, sync per step"
ON_CPU_ONLY, ON_GPU_ONLY = ("loop, a process per core",), ("loop, graphs and streams",)
