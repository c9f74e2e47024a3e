"""Predicted peak memory of a run, and the largest chunk that fits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..aggregation.server_optimizers import server_rows
from ..common.errors import UsageError
from ..common.machine import available, resident_bytes
from ..config.schema import RunConfig
from ..data.sources import uploads
from ..data.types import DataSet, Split
from ..executors.base import LocalProblem
from ..executors.gradient_rows import best_by_parameter
from ..executors.registry import EXECUTORS
from ..executors.tuning.conv_strategy import Strategies, parse_strategies
from ..training.evaluation import BATCH
from .activations import Activations, activations
from .store_plan import keeps_state, on_disk

GIB = 2**30
IN_FLIGHT = {"cpu": 2, "cuda": 4}
"""Tensors of an activation's size that a backward pass holds at once: the gradient of an output and of an input, and on
a GPU two more for a residual or for a convolution that copies to another memory layout."""
SLACK = {"cpu": 0.4, "cuda": 0.0}
"""Memory that malloc holds without use, as a fraction of the activations; measured by bench.memory."""
GRAD_COPIES = {"cpu": 4, "cuda": 2}
"""Copies of the gradients while a backward pass gathers them into rows, including those that malloc still holds;
measured by bench.memory."""
EVALUATION_TENSORS = 3
"""Activations that an evaluation holds at once: a layer's input and output, and a residual."""


@dataclass(frozen=True)
class Needs:
    """Memory that a run needs, in bytes, for any chunk.

    Attributes:
        torch: The process before training, without the data set.
        data: The data set on the device that trains.
        row: Parameters of one client.
        item: One number.
        activations: Activations of one client.
        clients: Number of clients of this process.
        batch: Samples per client and step.
        moments: Rows that the optimizer keeps for each client.
        state: Buffers of one client that a forward pass changes.
        in_place: Whether all resident clients step at once in their rows.
        workers: Number of clients that step at once if not in_place.
        device: "cpu" or "cuda".
        copies: Number of copies of the gradients at the end of a backward pass.
        kept: Clients of this process whose state waits between rounds; None: `clients`.
        fresh: Whether the optimizer begins anew in every round, so that none of its state waits.
        server: Rows of the server: the start of a round and its optimizer's buffers.
        on_disk: Whether the state waits in files, so that memory has it for three chunks, one of them on a GPU.
        terms: Bytes of a resident client that the run's algorithm adds to the gradients.
        own: Bytes of one client's state of the algorithm.
        replayed: Whether steps are replayed as a CUDA graph, whose memory nothing else can use.
        streamed: Bytes of a client's batches of a streaming source that wait on a GPU, or are the step's own.
    """

    torch: int
    data: int
    row: int
    item: int
    activations: Activations
    clients: int
    batch: int
    moments: int
    state: int
    in_place: bool
    workers: int
    device: str
    copies: int
    replayed: bool
    kept: int | None = None
    fresh: bool = False
    server: int = 0
    on_disk: bool = False
    terms: int = 0
    own: int = 0
    streamed: int = 0

    def parts(self, chunk: int) -> dict[str, int]:
        """Return {part: bytes} at the peak with `chunk` resident clients, on the device that trains."""
        per_client, at_once = self.activations, chunk if self.in_place else min(self.workers, chunk)
        kept = self.clients if self.kept is None else self.kept
        resident = kept if self.device == "cpu" or chunk == kept else chunk
        if self.on_disk:
            resident = 3 * chunk if self.device == "cpu" else chunk
        # malloc reuses freed memory only within a thread, and the main thread takes the first step
        threads = at_once + (self.workers > 1 and not self.in_place)
        activations = threads * (per_client.fixed + per_client.per_sample * self.batch)
        grads = at_once * self.row
        # A backward pass first holds gradients of activations. At its end the activations are freed, and the
        # parameters' gradients may be copied to be contiguous. An evaluation reuses this memory, unless a CUDA graph
        # owns it.
        workspace = max(
            IN_FLIGHT[self.device] * at_once * per_client.largest * self.batch + int(SLACK[self.device] * activations),
            self.copies * grads - activations,
        )
        evaluation = EVALUATION_TENSORS * per_client.largest * BATCH[self.device]
        workspace = workspace + evaluation if self.replayed else max(workspace, evaluation - activations - grads)
        # flat parameters, module, decay mask and start values; running mean in float64
        own = (4 + self.server) * self.row + 8 * (self.row // self.item)
        moments = "moments" if self.moments > 1 else "momentum"
        client_buffers = {"client buffers": resident * self.state} if self.state else {}
        return {
            "torch itself": self.torch,
            "data set": self.data,
            "parameters": (chunk if self.in_place else chunk + at_once) * self.row + own,
            "gradients": grads,
            moments: (chunk if self.fresh else resident) * self.row * self.moments,
            **client_buffers,
            **({"algorithm": resident * self.own + chunk * self.terms} if self.own or self.terms else {}),
            "activations": activations,
            **({"batches from the host": at_once * self.streamed} if self.streamed else {}),
            "workspace": workspace,
        }

    def total(self, chunk: int) -> int:
        """Return the bytes at the peak."""
        return sum(self.parts(chunk).values())

    def largest_chunk(self, limit: int) -> int:
        """Return the largest number of resident clients that fits into `limit` bytes; 0 if one does not fit."""
        low, high = 0, self.clients
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.total(middle) <= limit else (low, middle - 1)
        return low


@dataclass(frozen=True)
class MemoryPlan:
    """The chunk of a run against its memory limit.

    Attributes:
        needs: Memory that the run needs.
        chunk: Number of resident clients.
        limit: Bytes that the run may use.
        limit_is_set: Whether `limit` comes from --memory-limit; else it is the free memory.
        fits: The largest chunk that fits.
    """

    needs: Needs
    chunk: int
    limit: int
    limit_is_set: bool
    fits: int

    def table(self) -> str:
        """Return log lines with the size of each part and the largest chunk."""
        parts = self.needs.parts(self.chunk)
        lines = [f"{name:<16}{size / 2**20:>12,.1f} MiB" for name, size in parts.items()]
        lines.append(f"{'peak':<16}{sum(parts.values()) / 2**20:>12,.1f} MiB with --chunk {self.chunk}")
        where = "allowed" if self.limit_is_set else "free"
        lines.append(
            f"{'limit':<16}{self.limit / 2**20:>12,.1f} MiB {where}; at most --chunk {self.fits} of "
            f"{self.needs.clients} clients fits"
        )
        return "\n".join(lines)


def resolve_chunk(config: RunConfig, problem: LocalProblem, data: DataSet, requested: int | None) -> RunConfig:
    """Return `config` with a chunk that fits: on a GPU as few equal ones as fit, on a CPU at most the default.

    Args:
        config: Settings with the default chunk.
        problem: The local step.
        data: The data set.
        requested: Chunk that the user set, or None.

    Raises:
        UsageError: The requested chunk, or one client, does not fit.
    """
    unlimited = config.with_values(chunk=None if requested is None else min(requested, config.clients))
    plan = plan_memory(unlimited, problem, data)
    refuse_too_large(unlimited, plan)
    if requested is not None:
        return config
    assert config.machine.chunk is not None, "resolved before"
    if problem.numerics.device.type == "cuda":
        chunks = -(-config.clients // plan.fits)
        return config.with_values(chunk=-(-config.clients // chunks))  # steps are tried and tuned for equal chunks
    return config.with_values(chunk=min(config.machine.chunk, plan.fits))


def plan_memory(config: RunConfig, problem: LocalProblem, data: DataSet) -> MemoryPlan:
    """Predict the memory of a run; if its chunk is None, for the largest chunk that fits."""
    machine = config.machine
    limit = available(problem.numerics.device)
    if machine.memory_limit is not None:
        limit = int(machine.memory_limit * GIB)
    strategies = parse_strategies(machine.conv_strategy, problem.module, problem.numerics.device)
    needs = _needs(config, problem, data, strategies)
    fits = needs.largest_chunk(limit)
    return MemoryPlan(needs, machine.chunk or max(fits, 1), limit, machine.memory_limit is not None, fits)


def refuse_too_large(config: RunConfig, plan: MemoryPlan) -> None:
    """Raise UsageError if the chunk does not fit, and name the setting that needs most memory."""
    needs = plan.needs
    if plan.fits and (config.machine.chunk is None or config.machine.chunk <= plan.fits):
        return
    have = f"--memory-limit allows {_gib(plan.limit)}" if plan.limit_is_set else f"{_gib(plan.limit)} are free"
    if plan.fits:
        raise UsageError(
            f"--chunk {config.machine.chunk}: needs {_gib(needs.total(plan.chunk))}, {have}; --chunk {plan.fits} fits"
        )
    parts = needs.parts(1)
    largest = max((name for name in parts if name != "torch itself"), key=parts.__getitem__)
    smaller = "--momentum 0" if needs.moments < 2 else "--client-optimizer sgd"
    disk = "" if needs.on_disk or needs.fresh else "--client-store disk, "
    clients = (f"--clients {config.clients}", f"lower it, or take {disk}{smaller}")
    if needs.kept is not None:
        remedy = f"take {disk}--client-state reset or {smaller}"
        clients = (f"--population {config.client.population}", remedy)
    flag, more = {
        "momentum": clients,
        "moments": clients,
        "client buffers": clients,
        "algorithm": clients,
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
    splits = [split for split in (data.train, data.test) if isinstance(split, Split)]
    torch_itself, images = 0, sum(split.resident_bytes for split in splits)
    if numbers.device.type == "cpu":
        # the data set of a dry run has sizes without storage
        loaded = [
            split.resident_bytes for split in splits if split.inputs.untyped_storage().nbytes() >= split.resident_bytes
        ]
        torch_itself = max(resident_bytes() - sum(loaded), 0)
    else:
        images = torch.cuda.memory_allocated(numbers.device)  # the sources are already on the GPU
    return Needs(
        torch=torch_itself,
        data=images,
        row=problem.layout.n_params * numbers.dtype.itemsize,
        item=numbers.dtype.itemsize,
        activations=activations(problem, stacked=kind.in_place, strategies=strategies),
        clients=config.clients,
        batch=config.client.batch_size,
        moments=problem.moments,
        state=sum(value.nbytes for value in problem.state.values()),
        in_place=kind.in_place,
        workers=kind.workers(config.machine),
        device=numbers.device.type,
        copies=_copies(config, problem) if kind.in_place else GRAD_COPIES[numbers.device.type],
        kept=config.client.population if keeps_state(config, problem) else None,
        fresh=config.client.client_state == "reset",
        server=server_rows(config.server) + len(problem.algorithm.server) + 4 * len(problem.algorithm.sums),
        on_disk=on_disk(config, problem),
        terms=problem.correction.drift * numbers.dtype.itemsize * problem.layout.n_params,
        own=sum(value.nbytes for value in problem.algorithm.clients.values()),
        replayed="cuda_graph" in kind.flags and config.machine.cuda_graph is not False and can_replay(problem),
        streamed=_streamed_bytes(config, problem),
    )


def _streamed_bytes(config: RunConfig, problem: LocalProblem) -> int:
    """Return the bytes of a client's batches on a GPU: the captured step's own, and those that are copied ahead."""
    if problem.source.resident or problem.numerics.device.type == "cpu":
        return 0
    return (2 + uploads.AHEAD) * problem.source.batch_bytes(config.client.batch_size)


def can_replay(problem: LocalProblem) -> bool:
    """Return True if steps can be replayed as a CUDA graph, which needs a GPU."""
    return problem.numerics.device.type == "cuda"


def _copies(config: RunConfig, problem: LocalProblem) -> int:
    """Return the number of copies of the gradients at the end of a stacked backward pass."""
    device = problem.numerics.device
    by_parameter = best_by_parameter(device, compile=bool(config.machine.compile))
    return 0 if by_parameter else GRAD_COPIES[device.type]


def _gib(size: int) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 20 else f"{size / 2**20:.2g} MiB"
