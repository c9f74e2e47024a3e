"""The ops that a run on a device trusts, each in a process of its own, and the verdicts for later runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

import torch

from fastlocal import kernels
from fastlocal.kernels import native
from fastlocal.kernels.cores import machine_cores

from ..common.disk_cache import cache_file
from ..common.errors import UsageError, nearest
from ..kernel_trial import verdicts
from ..kernel_trial.jobs import NO_VERDICT, TRITON, Job
from ..kernel_trial.kernels_tried import NATIVE_OPS, SECONDS
from ..kernel_trial.processes import LATE, Outcome, Processes
from .checks import Check

MOST_AT_ONCE = 6
WORDS = {"native": "C++", "cpu": "for CPUs", "triton": "Triton"}


def backends(device: torch.device) -> dict[str, tuple[str, ...]]:
    """The ops to check on a device, by backend."""
    if kernels.runs_triton(device):
        return {"triton": kernels.TRITON_OPS}
    if device.type != "cpu":
        return {}
    missing = native.compiled(cache_file("native"))[1]
    return {"cpu": kernels.CPU_OPS, **({} if missing else {"native": NATIVE_OPS})}


def chosen(found: dict[str, tuple[str, ...]], only: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    """Those of the ops that are wanted. Raises UsageError for one that the device does not have."""
    if only is None:
        return found
    known = [op for ops in found.values() for op in ops]
    for op in only:
        if op not in known:
            raise UsageError(f"--ops {op}: is no op of this device{nearest(op, known)}; known: {', '.join(known)}")
    return {backend: tuple(op for op in ops if op in only) for backend, ops in found.items()}


def check_operations(
    device: torch.device, ops: dict[str, tuple[str, ...]], calls: Path, seconds: float
) -> Iterator[Check]:
    """Check every op on its small cases and on the calls of a run, and remember what comes of it.

    Args:
        device: Where.
        ops: By backend.
        calls: What calls.Calls.save wrote.
        seconds: Within which each case of an op must be through.
    """
    if not any(ops.values()):
        return
    with Processes() as processes:
        for backend, names in ops.items():
            if not names:
                continue
            job = Job((), backend, str(device), smallest=False, calls=str(calls), seconds=seconds)
            if backend == "triton":
                (outcome,) = processes.check(dataclasses.replace(job, ops=(TRITON,)))
                fault = outcome.fault and (verdicts.lacking() or outcome.fault)
                yield Check("environment", "a one-line kernel", fault, f"{outcome.seconds:.1f} s")
                if outcome.fault is not None and not _says_nothing(outcome.fault):
                    found = dict.fromkeys(names, fault)
                    if verdicts.lacking():
                        verdicts.remember(device, backend, found)
                    verdicts.take(backend, found)
                if fault is not None:
                    continue
            for outcome in _each(processes, dataclasses.replace(job, ops=names), at_once(device)):
                op = outcome.op
                if not (outcome.fault and _says_nothing(outcome.fault)):
                    if not (outcome.fault and LATE in outcome.fault and seconds < SECONDS):
                        verdicts.remember(device, backend, {op: outcome.fault})
                    verdicts.take(backend, {op: outcome.fault})
                yield _line(outcome, backend)


def at_once(device: torch.device) -> int:
    """How many ops are checked side by side: on a GPU most of the time goes to compiling, with one core for each."""
    return max(1, min(MOST_AT_ONCE, machine_cores() // 2)) if device.type == "cuda" else 1


def _each(first: Processes, job: Job, count: int) -> Iterator[Outcome]:
    """What comes of the ops of a job, each in a process of its own, `count` of them at a time and in their order."""
    with ExitStack() as opened:
        every = [first, *(opened.enter_context(Processes()) for _ in range(min(count, len(job.ops)) - 1))]
        free: SimpleQueue[Processes] = SimpleQueue()
        for one in every:
            free.put(one)

        def check(op: str) -> Outcome:
            processes = free.get()
            try:
                (outcome,) = processes.check(dataclasses.replace(job, ops=(op,)))
            finally:
                free.put(processes)
            return outcome

        with ThreadPoolExecutor(count) as pool:
            try:
                yield from pool.map(check, job.ops)
            except BaseException:  # Ctrl-C, which one thread was told of
                for one in every:
                    one.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _says_nothing(fault: str) -> bool:
    return any(word in fault for word in NO_VERDICT)


def _line(outcome: Outcome, backend: str) -> Check:
    cases = f"{outcome.checked} case{'' if outcome.checked == 1 else 's'}"
    fault = outcome.fault and (f"not checked: {outcome.fault}" if _says_nothing(outcome.fault) else outcome.fault)
    return Check("kernel", f"{outcome.op} {WORDS[backend]}", fault, f"{cases} in {outcome.seconds:.1f} s")
