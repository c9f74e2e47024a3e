"""Kernels tried before a run trusts them, in a process of their own and once for a machine."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterable

import torch
from torch import nn

from fastlocal import kernels
from fastlocal.kernels import native
from fastlocal.kernels.conv2d_clients.operator import CONVOLUTIONS

from ..common.disk_cache import cache_file, once
from . import verdicts
from .jobs import NO_VERDICT, TRITON, Job, line
from .processes import Processes

ALWAYS = ("client_mean", "client_norm", "client_sgd", "gather_augment", "label_noise_loss")
NORMS = ("norm_act", "norm_act_backward")
SECONDS = 120.0
LONGEST_SECONDS = 300.0
"""After which no further op is tried, as other ranks wait for this one."""
NATIVE_OPS = (
    "client_sum",
    "cross_entropy",
    "gather_images",
    "group_norm_act",
    "group_norm_act_backward",
    "product",
    "product_update",
    "sgd_update",
)

_tried: dict[str, dict[str, str | None]] = {}
"""By file and key of the verdicts, what this process found, also where it is not stored; None for no verdict."""
_log = logging.getLogger(__name__)


def used_ops(module: nn.Module) -> tuple[str, ...]:
    """The ops with a Triton kernel that training a module may use."""
    parts = list(module.modules())
    convolutions = any(isinstance(part, nn.Conv2d) for part in parts)
    norms = any(isinstance(part, nn.GroupNorm | nn.modules.batchnorm._BatchNorm) for part in parts)
    return (*ALWAYS, *(CONVOLUTIONS if convolutions else ()), *(NORMS if norms else ()))


def try_kernels(device: torch.device, ops: Iterable[str]) -> dict[str, str]:
    """Run try_triton; on a CPU, refuse the ops that `fastlocal verify` found wrong."""
    if device.type == "cpu" and verdicts.any_fault():
        verdicts.take("cpu", verdicts.known(device, "cpu"))
    return try_triton(device, ops)


def try_triton(device: torch.device, ops: Iterable[str]) -> dict[str, str]:
    """Have `kernels` refuse those of these ops whose Triton kernels do not work on a device.

    Each has its smallest case compiled, run and compared in a process that may crash or hang; what comes of it is
    remembered for the machine. Nothing is done where "auto" is not Triton.

    Returns:
        The reasons by op.
    """
    if not kernels.runs_triton(device):
        return {}
    ops = tuple(ops)
    key = verdicts.key(device, "triton")
    tried = _tried.setdefault(f"{verdicts.verdict_file()} {key}", {})
    known = {**tried, **verdicts.known(device, "triton")}
    missing = [op for op in ops if op not in known]
    if missing:
        _log.info("Triton kernels are tried%s", once(verdicts.verdict_file()))
        found, lasting = _try(Job((TRITON, *missing), "triton", str(device), seconds=SECONDS))
        if lasting:
            verdicts.remember(device, "triton", found)
        tried.update(dict.fromkeys(missing) | found)
        known |= tried
    # what failed in a step of this process stays refused although its smallest case holds
    verdicts.take("triton", {op: fault for op in ops if (fault := known[op]) is not None})
    return {op: kernels.refusals()[op, "triton"] for op in ops if (op, "triton") in kernels.refusals()}


def _try(job: Job) -> tuple[dict[str, str | None], bool]:
    """Faults by op, nothing of an op where it is no fault of the kernel's, and whether they are to be remembered.

    What is wrong with the machine may be mended, a full disk say: it is, where the verdicts' key would show that.
    """
    found: dict[str, str | None] = {}
    end = time.monotonic() + LONGEST_SECONDS
    try:
        with Processes() as processes:
            for outcome in processes.check(job):
                if outcome.fault is not None and any(word in outcome.fault for word in NO_VERDICT):
                    if outcome.op == TRITON:
                        return {}, False
                    continue
                if outcome.op == TRITON and outcome.fault is not None:
                    reason = verdicts.lacking() or outcome.fault
                    return dict.fromkeys(job.ops[1:], reason), verdicts.lacking() is not None
                found[outcome.op] = outcome.fault
                if time.monotonic() > end:
                    break
    except (OSError, RuntimeError) as error:
        _log.warning("kernels are not tried first: %s", line(error))
    found.pop(TRITON, None)
    return found, True


def do_without(error: BaseException, device: torch.device) -> str | None:
    """Refuse the op whose Triton kernel raised an error; for the machine where it does not compile.

    Returns:
        The op; None where the error came from elsewhere, says nothing about a kernel, or cost the device.
    """
    op = kernels.failing_op(error)
    reason = line(error)
    if op is None or (op, "triton") in kernels.refusals() or kernels.is_device_fault(error):
        return None
    if isinstance(error, torch.OutOfMemoryError) or any(word in reason for word in NO_VERDICT):
        return None
    fault = {op: f"fails in a step: {verdicts.lacking() or reason}"}
    verdicts.take("triton", fault)
    kind = type(error)
    if kind.__module__.startswith("triton") and kind.__name__ != "OutOfResources":  # which is of one shape
        verdicts.remember(device, "triton", fault)
    return op


def load_native() -> str | None:
    """Make torch.ops.fastlocal_native, as native.load, once each of its functions was tried in another process.

    Returns:
        Why it cannot be had, in one line, or None. Functions that are wrong are refused.
    """
    path, reason = native.compiled(cache_file("native"))
    if path is None:
        return reason
    known = _native_verdicts(str(path.resolve()))
    verdicts.take("native", known)
    faults = [fault for op in NATIVE_OPS if (fault := known.get(op)) is not None]
    if len(faults) == len(NATIVE_OPS):
        return faults[0]  # loading it might be what crashes
    return native.load(cache_file("native"))


@functools.cache
def _native_verdicts(path: str) -> dict[str, str | None]:
    """Return the verdicts on the library at `path`; each process tries it at most once."""
    cpu = torch.device("cpu")
    known = verdicts.known(cpu, "native")
    missing = tuple(op for op in NATIVE_OPS if op not in known)
    if missing:
        _log.info("operations in C++ are tried%s", once(verdicts.verdict_file()))
        found, _ = _try(Job(missing, "native", "cpu", seconds=SECONDS))
        verdicts.remember(cpu, "native", found)
        known |= found
    return known


def native_lines(load: Callable[[], str | None] = load_native) -> list[str]:
    """For a person: which operations in C++ plain torch takes over, and why."""
    missing = load()
    if missing is not None:
        return [f"operations in C++: plain torch ({missing}; {verdicts.HINT})"]
    return verdicts.lines(NATIVE_OPS, "native")
