"""Replay one local step as a CUDA graph for every step of a round."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from weakref import WeakSet

import torch

from ..common import interrupts
from ..data.sources.base import Batch
from ..params.client_stack import ClientStack
from ..telemetry.trace import span
from .base import LocalProblem
from .interface import Executor
from .jobs import ChunkJob
from .round_plan import LocalStep, RoundPlan, RoundResult
from .stacked import StackedExecutor
from .streamed_batches import StreamedBatch, StreamedBatches
from .unequal_rows import ROW_COUNTS, fixed_rows, no_results, take_parts, whole_batches

MIN_STEPS = 16
"""Minimum capacity of a program in local steps, so that a small change of H needs no new program."""
WARM_UPS = 3
"""Steps before a capture, which compile and tune kernels, as the documentation of torch.cuda.graphs advises."""

MAX_PROGRAMS = 4
"""Captured numbers of clients: with dropped clients nearly every round has another one, and each takes memory."""


class StepProgram:
    """One local step of a chunk, which finds its samples and rates through a counter on the device.

    All inputs and outputs lie in fixed buffers, and no step reads a number on the host. Therefore the same sequence of
    kernels takes every step of a round. Batches of a streaming source are copied to fixed buffers before their steps.
    """

    def __init__(
        self,
        executor: StackedExecutor,
        stack: ClientStack,
        steps: int,
        plan: RoundPlan,
        streamed: StreamedBatch | None = None,
    ) -> None:
        """Prepare the buffers.

        Args:
            executor: Takes the steps.
            stack: The clients.
            steps: Most steps of a round.
            plan: A round; if it has `sizes`, rows without a whole batch are masked.
            streamed: The first batch of a streaming source and the targets of its loss; None for a resident source.
        """
        self._executor = executor
        self.stack, self.steps = stack, steps
        clients, device = len(stack.params), stack.params.device
        numbers = {"dtype": torch.int64, "device": device}
        self._client_ids = torch.zeros(clients, **numbers)  # type: ignore[call-overload]
        self._batch_shape, self._sample_ids, self._streamed = plan.sample_ids.shape[1:], None, None
        if streamed is None:
            self._sample_ids = torch.zeros(steps, *self._batch_shape, **numbers)  # type: ignore[call-overload]
        else:
            batch, targets = streamed
            self._streamed = Batch(batch.inputs.clone(), batch.targets.clone()), targets.clone()
        first_steps = 1 if isinstance(plan.first_step, int) else clients
        self._first_step = torch.zeros(first_steps, **numbers)  # type: ignore[call-overload]
        self._values = plan.values.map(torch.zeros_like)
        self._counter = torch.zeros(1, **numbers)  # type: ignore[call-overload]
        self._rates = torch.zeros(steps, clients, dtype=stack.params.dtype, device=device)
        self._losses = torch.zeros_like(self._rates)
        self._correct = torch.zeros(clients, executor.problem.counts, dtype=torch.float64, device=device)
        self._active = None if plan.sizes is None else torch.ones(steps, clients, dtype=torch.bool, device=device)

    def serves(self, stack: ClientStack, plan: RoundPlan) -> bool:
        """Return True if the program uses the buffers of `stack` and has room for the plan."""
        addresses = [[tensor.data_ptr() for tensor in one.inputs] for one in (self.stack, stack)]
        fits = plan.local_steps <= self.steps and plan.sample_ids.shape[1:] == self._batch_shape
        one_step = isinstance(plan.first_step, int) == (len(self._first_step) == 1)
        alike = plan.values.tensors.keys() == self._values.tensors.keys()
        masked = plan.sizes is None or self._active is not None
        return fits and masked and one_step and alike and addresses[0] == addresses[1]

    def load(self, plan: RoundPlan) -> None:
        """Copy the plan of a round into the buffers."""
        self._client_ids.copy_(plan.client_ids)
        if isinstance(plan.first_step, int):
            self._first_step.fill_(plan.first_step)
        else:
            self._first_step.copy_(plan.first_step)
        for name, values in self._values.tensors.items():
            values.copy_(plan.values.tensors[name])
        if self._sample_ids is not None:
            self._sample_ids[: plan.local_steps].copy_(plan.sample_ids)
        self._rates[: plan.local_steps].copy_(plan.learning_rates)
        if self._active is not None:
            steps, rows = slice(plan.local_steps), slice(len(self._client_ids))
            self._active[steps].copy_(whole_batches(plan, steps, rows))
        self.rewind()

    def put(self, streamed: StreamedBatch) -> None:
        """Copy the batch of the next step into the buffers."""
        assert self._streamed is not None, "samples of a resident source are gathered by the step"
        (own, own_targets), (batch, targets) = self._streamed, streamed
        own.inputs.copy_(batch.inputs)
        own.targets.copy_(batch.targets)
        own_targets.copy_(targets)

    def rewind(self) -> None:
        """Return to the first step of the round."""
        self._counter.zero_()
        self._correct.zero_()

    def step(self) -> None:
        """Take the next local step of the round."""
        rates = self._rates.index_select(0, self._counter).squeeze(0)
        step = self._first_step + self._counter
        step = step.squeeze(0) if len(step) == 1 else step  # one for all clients
        if self._sample_ids is not None:
            sample_ids = self._sample_ids.index_select(0, self._counter).squeeze(0)
            batch, targets = self._executor.problem.batch_at(sample_ids, self._client_ids, step, self._values)
        else:
            assert self._streamed is not None, "one of both"
            batch, targets = self._streamed
        active = None if self._active is None else self._active.index_select(0, self._counter).squeeze(0)
        local_step = LocalStep(batch, targets, rates, self._client_ids, step, self._values, active)
        losses, correct = self._executor.local_step(self.stack, local_step)
        self._losses.index_copy_(0, self._counter, losses.unsqueeze(0))
        if correct is not None:
            self._correct += correct
        self._counter += 1

    def result(self, steps: int) -> RoundResult:
        """Return the losses and counts of the round."""
        correct = self._correct.clone() if self._executor.problem.topk else None
        return RoundResult(self._losses[:steps].clone(), correct, self._executor.take_notes())


class GraphedExecutor:
    """Run rounds by step programs, one per chunk size; a round beyond the capacity of its program gets a new one.

    After MAX_PROGRAMS sizes, steps of other sizes are not captured.
    """

    def __init__(self, executor: StackedExecutor, capture: Callable[[StepProgram], Callable[[], None]]) -> None:
        """Use `capture` to turn a program into a function that takes its next step."""
        self._executor = executor
        self.problem = executor.problem
        self._capture = capture
        self._programs: dict[int, tuple[StepProgram, Callable[[], None]]] = {}

    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        """See Executor.run_round."""
        resident = self.problem.source.resident
        if plan.sizes is not None:
            return self._run_unequal(stack, plan) if resident else self._executor.run_round(stack, plan)
        batches = None if resident else StreamedBatches(self.problem, plan)
        found = self._program_for(stack, plan, batches)
        if found is None:
            return self._executor.run_round(stack, plan)
        program, take_step = found
        program.load(plan)
        for step in range(plan.local_steps):
            interrupts.check_signals()
            if batches is not None:
                program.put(batches.at(step))
            take_step()
        return program.result(plan.local_steps)

    def _run_unequal(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        """Replay steps of fixed numbers of rows, in which rows without a whole batch are masked."""
        result, notes = no_results(self.problem, plan, stack), self._executor.take_notes()
        counts = [fixed_rows(plan, step) for step in range(plan.local_steps)]
        begin = 0
        for count, run in itertools.groupby(counts):
            steps = range(begin, begin + len(list(run)))
            begin = steps.stop
            part, rows = plan.part(slice(steps.start, steps.stop), slice(count)), slice(count)
            found = self._program_for(stack.part(rows), part) if count else None
            if found is not None:
                found[0].load(part)
            for step in steps:
                interrupts.check_signals()
                if found is not None:
                    found[1]()
                take_parts(self._executor, stack, plan, step, result, short=found is not None)
            if found is not None:
                replayed = found[0].result(len(steps))
                result.losses[steps.start : steps.stop, rows] += replayed.losses
                if result.correct is not None and replayed.correct is not None:
                    result.correct[rows] += replayed.correct
                notes += replayed.notes
        return dataclasses.replace(result, notes=(*notes, *self._executor.take_notes()))

    def _program_for(
        self, stack: ClientStack, plan: RoundPlan, batches: StreamedBatches | None = None
    ) -> tuple[StepProgram, Callable[[], None]] | None:
        """Return the program of a plan and what takes its next step; None if there are enough of other sizes."""
        clients, most = len(stack.params), MAX_PROGRAMS if plan.sizes is None else 2 * ROW_COUNTS
        if clients not in self._programs and len(self._programs) >= most:
            return None
        if clients not in self._programs or not self._programs[clients][0].serves(stack, plan):
            self._programs.pop(clients, None)  # free its buffers first
            capacity = max(MIN_STEPS, 1 << (plan.local_steps - 1).bit_length())
            first = None if batches is None else batches.at(0)
            program = StepProgram(self._executor, stack, capacity, plan, first)
            program.load(plan)
            self._programs[clients] = program, self._capture_step(program, clients)
        return self._programs[clients]

    def run_jobs(self, jobs: Sequence[ChunkJob]) -> list[RoundResult]:
        """See Executor.run_jobs; one program steps the rows of all runs."""
        return self._executor.joint.run(self.run_round, jobs)

    def replica(self, problem: LocalProblem) -> Executor:
        """See ExecutorKind.replica; the program is shared."""
        return self

    def _capture_step(self, program: StepProgram, clients: int) -> Callable[[], None]:
        """Capture a program; if memory runs out, capture it again with fewer clients at once."""
        while True:
            try:
                return self._capture(program)
            except torch.OutOfMemoryError:
                if not self._executor.can_step_fewer(clients):
                    raise
            self._executor.step_fewer(clients)  # outside `except`: the exception holds the memory of the capture


@contextlib.contextmanager
def preserve_buffers(stack: ClientStack) -> Iterator[None]:
    """Undo changes of the buffers at the end of the block; the copy is on the host, as a chunk may fill the GPU."""
    before = [buffer.to("cpu", copy=True) for buffer in stack.buffers]
    try:
        yield
    finally:
        for buffer, values in zip(stack.buffers, before, strict=True):
            buffer.copy_(values)


class CudaGraphs:
    """Capture step programs as CUDA graphs. They share one memory pool, because no two of them run at once."""

    def __init__(self) -> None:
        # a pool without graphs cannot be captured into again while some of its memory is in use
        self._alive: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def __call__(self, program: StepProgram) -> Callable[[], None]:
        """Capture a step of a program and return a function that replays it.

        The program must have a plan loaded. Its buffers are restored.

        Raises:
            RuntimeError: The step cannot be captured, for example because it reads a number on the host.
        """
        device = program.stack.params.device
        random = torch.cuda.get_rng_state(device)
        with preserve_buffers(program.stack):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    program.rewind()
                    program.step()
            torch.cuda.current_stream(device).wait_stream(side)
        torch.cuda.set_rng_state(random, device)
        graph = torch.cuda.CUDAGraph()
        pool = next((other.pool() for other in self._alive), None)
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            program.step()
        self._alive.add(graph)

        def replay() -> None:
            with span("local_step"):
                graph.replay()

        return replay
