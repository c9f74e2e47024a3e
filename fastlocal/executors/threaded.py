"""Train clients in worker threads on a CPU, one client per core at a time."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import torch
from torch import Tensor

from ..common.errors import one_line
from ..common.interrupts import defer_signals
from ..config.schema import MachineConfig, RunConfig
from ..models.functional import has_convolution
from ..params.client_stack import ClientStack
from .base import LocalProblem
from .interface import ExecutorKind, Values
from .jobs import ChunkJob
from .looped import LoopedExecutor
from .round_plan import RoundPlan, RoundResult
from .scripted.fuse_norms import norms_in_native
from .scripted.trace import ScriptedSteps, compile_ahead, script
from .scripted.trace_checks import perturbed

Steps = LoopedExecutor | ScriptedSteps
TRACED_SHORT = 16
"""Whole batches up to this size have a traced step for each short size too, as it comes. Short batches of larger ones
take plain steps: a trace takes 0.1 s and more, and few steps of such clients are short."""


class ThreadedExecutor(ExecutorKind):
    """Assign clients to workers one by one, so that no worker waits for another; the result does not depend on it.

    If the module can be traced, a step is one TorchScript function, which does not hold the interpreter lock. Otherwise
    steps run as in the looped executor.
    """

    name = "threaded"

    @classmethod
    def from_config(cls, machine: MachineConfig, problem: LocalProblem) -> ThreadedExecutor:
        """See ExecutorKind.from_config."""
        workers = ThreadedExecutor.workers(machine)
        return ThreadedExecutor(problem, workers=workers, channels_last=bool(machine.channels_last))

    @classmethod
    def refusal(cls, problem: LocalProblem) -> str | None:
        """See ExecutorKind.refusal."""
        device = problem.numerics.device
        if device.type != "cpu":
            return f"its threads are for --device cpu, not {device}; use --executor stacked"
        if problem.adamw is not None:
            return "its traced steps are those of --client-optimizer sgd; use --executor stacked or looped"
        if problem.uses_rng:
            return (
                "the model draws random numbers that no client's seed fixes (from NumPy or Python, say), and threads "
                "would draw them in any order; use --executor looped"
            )
        if problem.correction.any:
            return "its steps cannot add the terms of --algorithm to the gradients; use --executor stacked or looped"
        if problem.shared is not None:
            return (
                f"forward keeps {problem.shared}, which threads would share with the loss or each other; use "
                "--executor looped"
            )
        return None

    @classmethod
    def workers(cls, machine: MachineConfig) -> int:
        """See ExecutorKind.workers."""
        return machine.workers or 1

    @classmethod
    def prepare(cls, problem: LocalProblem) -> list[str]:
        """See ExecutorKind.prepare."""
        return compile_ahead(problem)

    @classmethod
    def options(cls, config: RunConfig, requested: MachineConfig, problem: LocalProblem) -> list[Values]:
        """See ExecutorKind.options; the default layout comes first, as timing may end before the other."""
        default = bool(config.machine.channels_last)
        if requested.channels_last is None and has_convolution(problem.module):
            return [{"executor": "threaded", "channels_last": last} for last in (default, not default)]
        return [{"executor": "threaded", "channels_last": bool(requested.channels_last)}]

    @classmethod
    def default_layout(cls, config: RunConfig, problem: LocalProblem) -> bool:
        """Return True if convolutions are channels-last by default.

        In bf16 this depends on the norms in C++, which are compiled here for a threaded run. Time of a client-step on
        one core, in ms:

            model                              channels-last    contiguous
            cnn                                          2.7           4.0
            resnet20_gn                                  146           180
            resnet20_gn, bf16                             94           122
            resnet20_gn without C++ norms                180           180
            the same, bf16                               236           122
        """
        if not has_convolution(problem.module):
            return False
        machine = config.machine
        if machine.precision == "bf16" and machine.executor == ThreadedExecutor.name:
            return norms_in_native(problem.module)
        return machine.precision == "fp32"

    def __init__(self, problem: LocalProblem, *, workers: int, channels_last: bool = False) -> None:
        """Set up the workers.

        Args:
            problem: The local step.
            workers: Number of threads; each has one core and no intra-op threads.
            channels_last: Whether convolutions are channels-last in memory.
        """
        self.problem = problem
        self._workers = workers
        self._channels_last = channels_last
        self._scripts: dict[tuple[int, float, float], ScriptedSteps | None] = {}
        self._plain: list[LoopedExecutor] = []
        self._notes: list[str] = []

    def replica(self, problem: LocalProblem) -> ThreadedExecutor:
        """See ExecutorKind.replica; runs with the same update share its traced step."""
        executor = ThreadedExecutor(problem, workers=self._workers, channels_last=self._channels_last)
        executor._scripts = self._scripts
        return executor

    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        """See Executor.run_round."""
        return self.run_jobs([ChunkJob(self, self.problem, stack, plan)])[0]

    @defer_signals()
    def run_jobs(self, jobs: Sequence[ChunkJob]) -> list[RoundResult]:
        """See Executor.run_jobs; the workers take the clients of all runs."""
        executors = [job.executor for job in jobs if isinstance(job.executor, ThreadedExecutor)]
        steps = [executor._steps_for(job.plan) for executor, job in zip(executors, jobs, strict=True)]
        losses = [torch.zeros(job.plan.sample_ids.shape[:2], dtype=job.stack.params.dtype) for job in jobs]
        correct = [torch.zeros(len(job.stack.params), job.problem.counts, dtype=torch.float64) for job in jobs]
        clients = iter([(place, client) for place, job in enumerate(jobs) for client in range(len(job.stack.params))])
        stop, lock = threading.Event(), threading.Lock()

        def remaining() -> Iterator[tuple[int, int]]:
            while not stop.is_set():
                with lock:
                    one = next(clients, None)
                if one is None:
                    return
                yield one

        def work(worker: int) -> None:
            torch.set_num_threads(1)  # applies to this thread, and to threads that start later
            for place, client in remaining():
                own, job = steps[place][worker], jobs[place]
                correct[place][client] = own.run_client(job.stack, job.plan, client, losses[place][:, client])

        threads = torch.get_num_threads()
        with ThreadPoolExecutor(self._workers, "fastlocal-worker") as pool:
            try:
                futures = [pool.submit(work, worker) for worker in range(self._workers)]
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
                torch.set_num_threads(threads)
        for future in futures:
            future.result()
        for own in itertools.chain(*steps):
            if isinstance(own, LoopedExecutor):
                own.check()
        return [
            RoundResult(losses[place], correct[place] if job.problem.topk else None, executors[place].take_notes())
            for place, job in enumerate(jobs)
        ]

    def take_notes(self) -> tuple[str, ...]:
        """Return the log lines since the last call."""
        notes = tuple(self._notes)
        self._notes.clear()
        return notes

    def _steps_for(self, plan: RoundPlan) -> Sequence[Steps]:
        """Return the steps of each worker."""
        scripted, short_sizes = self._scripted(plan.batch), plan.short_sizes
        if (scripted is None or short_sizes) and not self._plain:
            self._plain = [LoopedExecutor(self.problem) for _ in range(self._workers)]
        if scripted is None:
            return self._plain
        own = dataclasses.replace(scripted, problem=self.problem)
        if not short_sizes:
            return [own] * self._workers
        sizes = short_sizes if plan.batch <= TRACED_SHORT else ()
        short = {size: steps for size in sizes if (steps := self._scripted(size)) is not None}
        return [dataclasses.replace(own, short=short, plain=plain) for plain in self._plain]

    def _scripted(self, size: int) -> ScriptedSteps | None:
        """Return the traced step for batches of a size, made once; None where the plain one has to be taken."""
        key = size, self.problem.momentum, self.problem.weight_decay
        if key not in self._scripts:
            steps = self._script(size)
            if isinstance(steps, str) and not self._scripts:
                self._notes.append(f"threads take steps of the plain module, as it cannot be traced ({steps})")
            self._scripts[key] = None if isinstance(steps, str) else steps
        return self._scripts[key]

    def _script(self, batch_size: int) -> ScriptedSteps | str:
        """Return a traced step, or why there is none: the trace failed, or its step differs from the plain one."""
        batch = self.problem.source.read_range(0, batch_size)
        indices = torch.arange(batch_size) % len(batch.inputs)
        inputs, targets = batch.inputs[indices], batch.targets[indices]
        try:
            steps = script(self.problem, inputs, targets, channels_last=self._channels_last)
            return self._difference(steps, inputs, targets) or steps
        except Exception as error:  # any failure of the trace: plain steps still work
            return one_line(error)

    def _difference(self, steps: ScriptedSteps, inputs: Tensor, targets: Tensor) -> str | None:
        """Compare traced and plain steps from two sets of weights; return the difference in words, or None."""
        problem = self.problem
        start = problem.layout.flatten(dict(problem.module.named_parameters()))
        other = perturbed(start)  # weights that are zero at the start may hide a difference
        numerics = problem.numerics
        tolerance = 1e-6 if numerics.dtype == torch.float64 else 1e-2 if numerics.autocast_dtype is None else 1e-1
        plain = LoopedExecutor(problem)
        for row, start_momentum in ((start, torch.zeros_like(start)), (other, other - start)):
            for place in plain.without_gradient:  # the momentum of these parameters stays zero
                start_momentum[place] = 0.0
            results = []
            for executor in (steps, plain):
                params, momentum = row.clone(), start_momentum.clone() if problem.momentum else None
                loss = executor.check_step(params, momentum, inputs, targets)
                results.append((loss, params - row))
            for name, actual, expected in zip(("loss", "step"), *results, strict=True):
                size = expected.norm()
                if bool(size.isfinite()) and not bool((actual - expected).norm() <= tolerance * size):
                    return f"its traced {name} is another"
        return None
