"""Worker threads on a CPU, each taking the local steps of whole clients on one core."""

from __future__ import annotations

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
from .base import ExecutorKind, LocalProblem, Values
from .looped import LoopedExecutor
from .round_plan import RoundPlan, RoundResult
from .scripted.fuse_norms import norms_in_native
from .scripted.trace import ScriptedSteps, compile_ahead, script
from .scripted.trace_checks import perturbed

Steps = LoopedExecutor | ScriptedSteps


class ThreadedExecutor(ExecutorKind):
    """Hands out clients one by one, so that no worker waits for another; which worker takes a client decides nothing.

    workers: threads, each without intra-op threads of its own
    channels_last: compute convolutions in that memory layout
    Steps run as one TorchScript function where the module can be traced, which keeps workers out of each other's way:
    no interpreter lock is held within a step. Else they run as in the looped executor.
    """

    name = "threaded"

    @classmethod
    def from_config(cls, machine: MachineConfig, problem: LocalProblem) -> ThreadedExecutor:
        """As ExecutorKind.from_config."""
        workers = ThreadedExecutor.workers(machine)
        return ThreadedExecutor(problem, workers=workers, channels_last=bool(machine.channels_last))

    @classmethod
    def refusal(cls, problem: LocalProblem) -> str | None:
        """As ExecutorKind.refusal."""
        device = problem.numerics.device
        if device.type != "cpu":
            return f"its threads are for --device cpu, not {device}; use --executor stacked"
        if problem.uses_rng:
            return (
                "the model draws random numbers that no client's seed fixes (from NumPy or Python, say), and threads "
                "would draw them in any order; use --executor looped"
            )
        if problem.shared is not None:
            return (
                f"forward keeps {problem.shared}, which threads would share with the loss or each other; use "
                "--executor looped"
            )
        return None

    @classmethod
    def workers(cls, machine: MachineConfig) -> int:
        """As ExecutorKind.workers."""
        return machine.workers or 1

    @classmethod
    def prepare(cls, problem: LocalProblem) -> list[str]:
        """As ExecutorKind.prepare."""
        return compile_ahead(problem.module)

    @classmethod
    def options(cls, config: RunConfig, requested: MachineConfig, problem: LocalProblem) -> list[Values]:
        """As ExecutorKind.options: the usual layout first, as not all may be timed."""
        usual = bool(config.machine.channels_last)
        if requested.channels_last is None and has_convolution(problem.module):
            return [{"executor": "threaded", "channels_last": last} for last in (usual, not usual)]
        return [{"executor": "threaded", "channels_last": bool(requested.channels_last)}]

    @classmethod
    def default_layout(cls, config: RunConfig, problem: LocalProblem) -> bool:
        """Return whether convolutions are computed channels-last by rule.

        In bf16 that depends on the norms in C++, which a threaded run compiles for it.

        Milliseconds of a client-step on one core, channels-last and else: `cnn` 2.7 and 4.0, resnet20_gn 146 and 180,
        in bf16 94 and 122; without the norms in C++ 180 and 180, in bf16 236 and 122.
        """
        if not has_convolution(problem.module):
            return False
        machine = config.machine
        if machine.precision == "bf16" and machine.executor == ThreadedExecutor.name:
            return norms_in_native(problem.module)
        return machine.precision == "fp32"

    def __init__(self, problem: LocalProblem, *, workers: int, channels_last: bool = False) -> None:
        self.problem = problem
        self._workers = workers
        self._channels_last = channels_last
        self._steps: dict[int, Sequence[Steps]] = {}
        self._notes: list[str] = []

    @defer_signals()
    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        steps = self._steps_for(plan)
        losses = torch.zeros(plan.sample_ids.shape[:2], dtype=stack.params.dtype)
        correct = torch.zeros(self.problem.counts, dtype=torch.float64)
        clients = iter(range(stack.params.shape[0]))
        stop, lock = threading.Event(), threading.Lock()

        def left() -> Iterator[int]:
            while not stop.is_set():
                with lock:
                    client = next(clients, None)
                if client is None:
                    return
                yield client

        def work(own: Steps) -> None:
            torch.set_num_threads(1)  # of this thread alone, except that threads begun later start from it
            for client in left():
                hits = own.run_client(stack, plan, client, losses[:, client])
                with lock:
                    correct.add_(hits)

        threads = torch.get_num_threads()
        with ThreadPoolExecutor(self._workers, "fastlocal-worker") as pool:
            try:
                futures = [pool.submit(work, own) for own in steps]
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
                torch.set_num_threads(threads)
        for future in futures:
            future.result()
        for own in steps:
            if isinstance(own, LoopedExecutor):
                own.check()
        notes = tuple(self._notes)
        self._notes.clear()
        return RoundResult(losses, correct if self.problem.topk else None, notes)

    def _steps_for(self, plan: RoundPlan) -> Sequence[Steps]:
        """What each worker takes steps with, made once per batch size."""
        size = plan.sample_ids.shape[-1]
        if size not in self._steps:
            scripted = self._scripted(size)
            if scripted is None:
                self._steps[size] = [LoopedExecutor(self.problem) for _ in range(self._workers)]
            else:
                self._steps[size] = [scripted] * self._workers
        return self._steps[size]

    def _scripted(self, batch_size: int) -> ScriptedSteps | None:
        """The traced step, if there is one and it does what the plain module does."""
        rows = self.problem.source.read_range(0, batch_size)
        some = torch.arange(batch_size) % len(rows.inputs)
        inputs, targets = rows.inputs[some], rows.targets[some]
        try:
            steps = script(self.problem, inputs, targets, channels_last=self._channels_last)
            wrong = self._difference(steps, inputs, targets)
        except Exception as error:  # whatever keeps a module from being traced, its plain steps work
            wrong = one_line(error)
        if wrong is None:
            return steps
        self._notes.append(f"threads take steps of the plain module, as it cannot be traced ({wrong})")
        return None

    def _difference(self, steps: ScriptedSteps, inputs: Tensor, targets: Tensor) -> str | None:
        """What a step from the start weights, or from others, has otherwise than the plain module's, or None."""
        problem = self.problem
        start = problem.layout.flatten(dict(problem.module.named_parameters()))
        other = perturbed(start)  # what is zero at the start hides no difference there
        numerics = problem.numerics
        tolerance = 1e-6 if numerics.dtype == torch.float64 else 1e-2 if numerics.autocast_dtype is None else 1e-1
        plain = LoopedExecutor(problem)
        for row, moving in ((start, torch.zeros_like(start)), (other, other - start)):
            for place in plain.without_gradient:  # whose momentum stays zero
                moving[place] = 0.0
            results = []
            for taken in (steps, plain):
                params, momentum = row.clone(), moving.clone() if problem.momentum else None
                loss = taken.check_step(params, momentum, inputs, targets)
                results.append((loss, params - row))
            for name, got, wanted in zip(("loss", "step"), *results, strict=True):
                size = wanted.norm()
                if bool(size.isfinite()) and not bool((got - wanted).norm() <= tolerance * size):
                    return f"its traced {name} is another"
        return None
