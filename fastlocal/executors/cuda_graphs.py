"""A round as one local step run over and over on tensors alone, which a GPU replays as a CUDA graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from weakref import WeakSet

import torch

from ..common import interrupts
from ..params.client_stack import ClientStack
from ..telemetry.trace import span
from .round_plan import LocalStep, RoundPlan, RoundResult
from .stacked import StackedExecutor

LEAST_STEPS = 16
"""Local steps that a program has room for at least, so that a small change of H needs no new one."""
WARM_UPS = 3
"""Steps before a capture, in which kernels are compiled and tuned, as torch.cuda.graphs advises."""


class StepProgram:
    """One local step of given clients, which reads its samples, rates and random numbers through a counter.

    Everything that a step reads and writes lies in buffers that stay where they are, and no step looks at a number on
    the host, so that the same sequence of kernels takes every step of a round. `load` brings a round's plan in.
    """

    def __init__(self, executor: StackedExecutor, stack: ClientStack, steps: int, batch: int) -> None:
        self._executor = executor
        self.stack, self.steps = stack, steps
        clients, device = len(stack.params), stack.params.device
        numbers = {"dtype": torch.int64, "device": device}
        self._client_ids = torch.zeros(clients, **numbers)  # type: ignore[call-overload]
        self._sample_ids = torch.zeros(steps, clients, batch, **numbers)  # type: ignore[call-overload]
        self._first_step = torch.zeros(1, **numbers)  # type: ignore[call-overload]
        self._counter = torch.zeros(1, **numbers)  # type: ignore[call-overload]
        self._rates = torch.zeros(steps, clients, dtype=stack.params.dtype, device=device)
        self._losses = torch.zeros_like(self._rates)
        self._correct = torch.zeros(executor.problem.counts, dtype=torch.float64, device=device)

    def serves(self, stack: ClientStack, plan: RoundPlan) -> bool:
        """Whether the program is of these buffers, and has room for the plan."""
        addresses = [[buffer.data_ptr() for buffer in given.buffers] for given in (self.stack, stack)]
        fits = plan.local_steps <= self.steps and plan.sample_ids.shape[1:] == self._sample_ids.shape[1:]
        return fits and addresses[0] == addresses[1]

    def load(self, plan: RoundPlan) -> None:
        """Begin a round."""
        self._client_ids.copy_(plan.client_ids)
        self._first_step.fill_(plan.first_step)
        self._sample_ids[: plan.local_steps].copy_(plan.sample_ids)
        self._rates[: plan.local_steps].copy_(plan.learning_rates)
        self.rewind()

    def rewind(self) -> None:
        """Back to the round's first step."""
        self._counter.zero_()
        self._correct.zero_()

    def step(self) -> None:
        """The next local step of the round."""
        sample_ids = self._sample_ids.index_select(0, self._counter).squeeze(0)
        rates = self._rates.index_select(0, self._counter).squeeze(0)
        step = (self._first_step + self._counter).squeeze(0)  # one for all clients
        batch, targets = self._executor.problem.batch_at(sample_ids, self._client_ids, step)
        taken = LocalStep(batch, targets, rates, self._client_ids, step)
        losses, correct = self._executor.local_step(self.stack, taken)
        self._losses.index_copy_(0, self._counter, losses.unsqueeze(0))
        if correct is not None:
            self._correct += correct
        self._counter += 1

    def result(self, steps: int) -> RoundResult:
        """What the round's steps left."""
        correct = self._correct.clone() if self._executor.problem.topk else None
        return RoundResult(self._losses[:steps].clone(), correct, self._executor.take_notes())


class GraphedExecutor:
    """Rounds of step programs; `capture` makes of a program what takes its steps.

    A chunk of another size has a program of its own, and so has a round with more steps than there is room for.
    """

    def __init__(self, executor: StackedExecutor, capture: Callable[[StepProgram], Callable[[], None]]) -> None:
        self._executor = executor
        self.problem = executor.problem
        self._capture = capture
        self._programs: dict[int, tuple[StepProgram, Callable[[], None]]] = {}

    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        """As Executor.run_round."""
        clients = len(stack.params)
        if clients not in self._programs or not self._programs[clients][0].serves(stack, plan):
            self._programs.pop(clients, None)  # frees what it held
            room = max(LEAST_STEPS, 1 << (plan.local_steps - 1).bit_length())
            program = StepProgram(self._executor, stack, room, plan.sample_ids.shape[-1])
            program.load(plan)
            self._programs[clients] = program, self._captured(program, clients)
        program, take_step = self._programs[clients]
        program.load(plan)
        for _ in range(plan.local_steps):
            interrupts.check_signals()
            take_step()
        return program.result(plan.local_steps)

    def _captured(self, program: StepProgram, clients: int) -> Callable[[], None]:
        """Capture a program; if memory runs out, capture it again with fewer clients at once."""
        while True:
            try:
                return self._capture(program)
            except torch.OutOfMemoryError:
                if not self._executor.can_step_fewer(clients):
                    raise
            self._executor.step_fewer(clients)  # past the exception, which held what the capture had allocated


@contextlib.contextmanager
def put_back(stack: ClientStack) -> Iterator[None]:
    """What is done to the buffers within is undone; their copy is on the host, as a chunk is to fill a GPU's memory."""
    before = [buffer.to("cpu", copy=True) for buffer in stack.buffers]
    try:
        yield
    finally:
        for buffer, values in zip(stack.buffers, before, strict=True):
            buffer.copy_(values)


class CudaGraphs:
    """Captures step programs as CUDA graphs that share one pool of memory, as never two of them run at once."""

    def __init__(self) -> None:
        # a pool whose graphs are all gone cannot be captured into again while anything is left in it
        self._alive: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def __call__(self, program: StepProgram) -> Callable[[], None]:
        """What replays a step of the program, whose round must have been loaded; its buffers are left as they were.

        Raises RuntimeError where a step cannot be captured, because it looks at a number on the host, say.
        """
        device = program.stack.params.device
        random = torch.cuda.get_rng_state(device)
        with put_back(program.stack):
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
