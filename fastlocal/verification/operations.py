"""Checks of a device's ops, each in its own process; verdicts are stored for later runs."""

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

MAX_PROCESSES = 6
WORDS = {"native": "C++", "cpu": "for CPUs", "triton": "Triton"}


def backends(device: torch.device) -> dict[str, tuple[str, ...]]:
    """Return the ops to check on a device, by backend."""
    if kernels.runs_triton(device):
        return {"triton": kernels.TRITON_OPS}
    if device.type != "cpu":
        return {}
    missing = native.build_library(cache_file("native"))[1]
    return {"cpu": kernels.CPU_OPS, **({} if missing else {"native": NATIVE_OPS})}


def select(found: dict[str, tuple[str, ...]], only: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    """Restrict the ops to `only`; raises UsageError for an op that the device does not have."""
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
    """Check every op on its small cases and on the calls of a run, and store the verdicts.

    Args:
        device: Device of the run.
        ops: Ops by backend.
        calls: File of calls.Calls.save.
        seconds: Time limit of each case.
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
                fault = outcome.fault and (verdicts.missing_tool() or outcome.fault)
                yield Check("environment", "a one-line kernel", fault, f"{outcome.seconds:.1f} s")
                if outcome.fault is not None and not _is_no_verdict(outcome.fault):
                    found = dict.fromkeys(names, fault)
                    if verdicts.missing_tool():
                        verdicts.store(device, backend, found)
                    verdicts.apply(backend, found)
                if fault is not None:
                    continue
            for outcome in _check_each(processes, dataclasses.replace(job, ops=names), process_count(device)):
                op = outcome.op
                if not (outcome.fault and _is_no_verdict(outcome.fault)):
                    if not (outcome.fault and LATE in outcome.fault and seconds < SECONDS):
                        verdicts.store(device, backend, {op: outcome.fault})
                    verdicts.apply(backend, {op: outcome.fault})
                yield _line(outcome, backend)


def process_count(device: torch.device) -> int:
    """Return the number of ops to check in parallel: on a GPU compilation dominates, one core per op."""
    return max(1, min(MAX_PROCESSES, machine_cores() // 2)) if device.type == "cuda" else 1


def _check_each(first: Processes, job: Job, count: int) -> Iterator[Outcome]:
    """Check the ops of a job, each in its own process, `count` at a time; yield the outcomes in order."""
    with ExitStack() as stack:
        every = [first, *(stack.enter_context(Processes()) for _ in range(min(count, len(job.ops)) - 1))]
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
            except BaseException:  # Ctrl-C, which reaches only one thread
                for one in every:
                    one.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _is_no_verdict(fault: str) -> bool:
    return any(word in fault for word in NO_VERDICT)


def _line(outcome: Outcome, backend: str) -> Check:
    cases = f"{outcome.checked} case{'' if outcome.checked == 1 else 's'}"
    fault = outcome.fault and (f"not checked: {outcome.fault}" if _is_no_verdict(outcome.fault) else outcome.fault)
    return Check("kernel", f"{outcome.op} {WORDS[backend]}", fault, f"{cases} in {outcome.seconds:.1f} s")
