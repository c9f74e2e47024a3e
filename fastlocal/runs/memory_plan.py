"""How much memory a run is going to take, and how many clients fit at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..common.errors import UsageError
from ..common.machine import available, resident_bytes
from ..config.schema import RunConfig
from ..data.types import DataSet, Split
from ..executors.base import LocalProblem
from ..executors.registry import EXECUTORS
from ..executors.stacked import best_by_parameter
from ..executors.tuning.conv_strategy import Strategies, parse_strategies
from ..training.evaluation import BATCH
from .activations import Activations, activations

GIB = 2**30
IN_FLIGHT = {"cpu": 2, "cuda": 4}
"""Tensors of an activation's size that a backward pass holds at once: a gradient read and one written, and on a GPU the
same of a residual or of a layout that a convolution wants."""
SLACK = {"cpu": 0.4, "cuda": 0.0}
"""Of the activations: blocks that malloc keeps although nobody uses them, as measured by bench.memory."""
GATHERING = {"cpu": 4, "cuda": 2}
"""Copies of the gradients while a backward pass gathers them into rows; malloc keeps some of them, as measured by
bench.memory."""
EVALUATING = 3
"""Activations that an evaluation holds at once: a layer's input and output, and a residual."""


@dataclass(frozen=True)
class Needs:
    """What a run needs, in bytes, apart from how many clients are resident.

    torch: of the process before training, data excepted        data: the data set where the steps read it
    row: one client's parameters        item: one number        state: one client's buffers that a forward pass changes
    in_place: whether all resident clients step at once in their rows
    workers: clients that step at once if they do not        device: "cpu" or "cuda"
    copies: of the gradients at the end of a backward pass, beside themselves
    replayed: whether steps are replayed as a CUDA graph, whose memory nothing else can use
    """

    torch: int
    data: int
    row: int
    item: int
    activations: Activations
    clients: int
    batch: int
    momentum: bool
    state: int
    in_place: bool
    workers: int
    device: str
    copies: int
    replayed: bool

    def parts(self, chunk: int) -> dict[str, int]:
        """{what: bytes} at the peak with `chunk` clients resident, on the device where the steps are taken."""
        kept, at_once = self.activations, chunk if self.in_place else min(self.workers, chunk)
        resident = self.clients if self.device == "cpu" or chunk == self.clients else chunk
        # threads keep what they freed to themselves, and the first of all steps is the main thread's
        threads = at_once + (self.workers > 1 and not self.in_place)
        activations = threads * (kept.fixed + kept.per_sample * self.batch)
        grads = at_once * self.row
        # the backward pass holds gradients of activations first; at its end, when the activations are gone, it may make
        # those of the parameters contiguous and gather them; an evaluation has neither, and takes their place unless
        # they are a graph's
        workspace = max(
            IN_FLIGHT[self.device] * at_once * kept.largest * self.batch + int(SLACK[self.device] * activations),
            self.copies * grads - activations,
        )
        evaluation = EVALUATING * kept.largest * BATCH[self.device]
        workspace = workspace + evaluation if self.replayed else max(workspace, evaluation - activations - grads)
        # the averaged row, the module, the decay mask and the start; the running mean in float64
        own = 4 * self.row + 8 * (self.row // self.item)
        kept_buffers = {"client buffers": resident * self.state} if self.state else {}
        return {
            "torch itself": self.torch,
            "data set": self.data,
            "parameters": (chunk if self.in_place else chunk + at_once) * self.row + own,
            "gradients": grads,
            "momentum": resident * self.row if self.momentum else 0,
            **kept_buffers,
            "activations": activations,
            "workspace": workspace,
        }

    def total(self, chunk: int) -> int:
        """Bytes at the peak."""
        return sum(self.parts(chunk).values())

    def largest_chunk(self, limit: int) -> int:
        """The largest number of resident clients that fits into `limit` bytes; 0 where one does not."""
        low, high = 0, self.clients
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.total(middle) <= limit else (low, middle - 1)
        return low


@dataclass(frozen=True)
class MemoryPlan:
    """limit: bytes that the run may take        given: whether --memory-limit says so, else it is what is free
    fits: the largest chunk that fits
    """

    needs: Needs
    chunk: int
    limit: int
    given: bool
    fits: int

    def table(self) -> str:
        """Lines for a person: bytes of each part, and the largest chunk."""
        parts = self.needs.parts(self.chunk)
        lines = [f"{name:<16}{size / 2**20:>12,.1f} MiB" for name, size in parts.items()]
        lines.append(f"{'peak':<16}{sum(parts.values()) / 2**20:>12,.1f} MiB with --chunk {self.chunk}")
        where = "allowed" if self.given else "free"
        lines.append(
            f"{'limit':<16}{self.limit / 2**20:>12,.1f} MiB {where}; at most --chunk {self.fits} of "
            f"{self.needs.clients} clients fits"
        )
        return "\n".join(lines)


def resolve_chunk(config: RunConfig, problem: LocalProblem, data: DataSet, requested: int | None) -> RunConfig:
    """`config` with a chunk that fits: on a GPU all that does, on a CPU no more than is comfortable.

    asked: what the user wants, or None
    Raises UsageError where what was asked for cannot fit.
    """
    wanted = config.with_values(chunk=None if requested is None else min(requested, config.clients))
    plan = plan_memory(wanted, problem, data)
    refuse_too_large(wanted, plan)
    if requested is not None:
        return config
    assert config.machine.chunk is not None, "resolved before"
    on_gpu = problem.numerics.device.type == "cuda"
    return config.with_values(chunk=plan.fits if on_gpu else min(config.machine.chunk, plan.fits))


def plan_memory(config: RunConfig, problem: LocalProblem, data: DataSet) -> MemoryPlan:
    """What the resolved run of `config` takes; its chunk may still be open, and is then the largest that fits."""
    machine = config.machine
    limit = available(problem.numerics.device)
    if machine.memory_limit is not None:
        limit = int(machine.memory_limit * GIB)
    strategies = parse_strategies(machine.conv_strategy, problem.module, problem.numerics.device)
    needs = _needs(config, problem, data, strategies)
    fits = needs.largest_chunk(limit)
    return MemoryPlan(needs, machine.chunk or max(fits, 1), limit, machine.memory_limit is not None, fits)


def refuse_too_large(config: RunConfig, plan: MemoryPlan) -> None:
    """Raise UsageError where what the user asked for cannot fit."""
    needs = plan.needs
    if plan.fits and (config.machine.chunk is None or config.machine.chunk <= plan.fits):
        return
    have = f"--memory-limit allows {_gib(plan.limit)}" if plan.given else f"{_gib(plan.limit)} are free"
    if plan.fits:
        raise UsageError(
            f"--chunk {config.machine.chunk}: needs {_gib(needs.total(plan.chunk))}, {have}; --chunk {plan.fits} fits"
        )
    parts = needs.parts(1)
    largest = max((name for name in parts if name != "torch itself"), key=parts.__getitem__)
    flag, more = {
        "momentum": (f"--clients {config.clients}", "lower it or take --momentum 0"),
        "data set": (f"--dataset {config.data.dataset}", "take a smaller one"),
        "activations": (f"--batch-size {config.client.batch_size}", "lower it or take a smaller --model"),
        "workspace": (f"--batch-size {config.client.batch_size}", "lower it or take a smaller --model"),
    }.get(largest, (f"--model {config.model.model}", "take a smaller one"))
    raise UsageError(
        f"{flag}: one resident client already needs {_gib(sum(parts.values()))}, of it {_gib(parts[largest])} for "
        f"{largest}; {have}; {more}"
    )


def _needs(config: RunConfig, problem: LocalProblem, data: DataSet, strategies: Strategies) -> Needs:
    numbers, kind = problem.numerics, EXECUTORS[config.machine.executor]
    halves = [half for half in (data.train, data.test) if isinstance(half, Split)]
    torch_itself, images = 0, sum(half.resident_bytes for half in halves)
    if numbers.device.type == "cpu":
        # a data set that is only outlined has no storage behind its sizes
        held = [half.resident_bytes for half in halves if half.inputs.untyped_storage().nbytes() >= half.resident_bytes]
        torch_itself = max(resident_bytes() - sum(held), 0)
    else:
        images = torch.cuda.memory_allocated(numbers.device)  # what is read from is there already
    return Needs(
        torch=torch_itself,
        data=images,
        row=problem.layout.n_params * numbers.dtype.itemsize,
        item=numbers.dtype.itemsize,
        activations=activations(problem, stacked=kind.in_place, strategies=strategies),
        clients=config.clients,
        batch=config.client.batch_size,
        momentum=bool(problem.momentum),
        state=sum(value.nbytes for value in problem.state.values()),
        in_place=kind.in_place,
        workers=kind.workers(config.machine),
        device=numbers.device.type,
        copies=_copies(config, problem) if kind.in_place else GATHERING[numbers.device.type],
        replayed="cuda_graph" in kind.flags and config.machine.cuda_graph is not False and can_replay(problem),
    )


def can_replay(problem: LocalProblem) -> bool:
    """Return True if steps can be replayed as a CUDA graph, which needs a GPU and a resident source."""
    return problem.numerics.device.type == "cuda" and problem.source.resident


def _copies(config: RunConfig, problem: LocalProblem) -> int:
    """Of the gradients of clients that step as one stack, at the end of their backward pass."""
    device = problem.numerics.device
    by_parameter = best_by_parameter(device, compile=bool(config.machine.compile))
    return 0 if by_parameter else GATHERING[device.type]


def _gib(size: int) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 20 else f"{size / 2**20:.2g} MiB"
