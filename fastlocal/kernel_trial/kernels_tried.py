"""Try kernels before a run uses them, in a process of their own and once per machine."""

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

ALWAYS = ("client_mean", "client_norm", "gather_augment", "label_noise_loss")
NORMS = ("norm_act", "norm_act_backward")
SECONDS = 120.0
MAX_SECONDS = 300.0
"""Time after which no further op is tried: other ranks wait for this one."""
NATIVE_OPS = (
    "client_sum",
    "cross_entropy",
    "gather_images",
    "group_norm_act",
    "group_norm_act_backward",
    "max_pool_act",
    "max_pool_act_backward",
    "module_words",
    "product",
    "product_update",
    "sgd_update",
)

_results: dict[str, dict[str, str | None]] = {}
"""Faults that this process found, by file and key of the verdicts, stored or not; None for no verdict."""
_log = logging.getLogger(__name__)


def used_ops(module: nn.Module, *, adamw: bool = False, server: bool = False) -> tuple[str, ...]:
    """Return the ops with a Triton kernel that the training of a module may use.

    Args:
        module: The module.
        adamw: Whether clients take AdamW steps instead of SGD's.
        server: Whether a server optimizer steps.
    """
    parts = list(module.modules())
    convolutions = any(isinstance(part, nn.Conv2d) for part in parts)
    norms = any(isinstance(part, nn.GroupNorm | nn.modules.batchnorm._BatchNorm) for part in parts)
    return (
        *ALWAYS,
        "client_adamw" if adamw else "client_sgd",
        *(("server_step",) if server else ()),
        *(CONVOLUTIONS if convolutions else ()),
        *(NORMS if norms else ()),
    )


def try_kernels(device: torch.device, ops: Iterable[str]) -> dict[str, str]:
    """Run try_triton; on a CPU, disable the ops that `fastlocal verify` found wrong."""
    if device.type == "cpu" and verdicts.any_fault():
        verdicts.apply("cpu", verdicts.known(device, "cpu"))
    return try_triton(device, ops)


def try_triton(device: torch.device, ops: Iterable[str]) -> dict[str, str]:
    """Disable the Triton kernels of `ops` that do not work on a device.

    The smallest case of each op is compiled, run and compared in a process that may crash or hang, and the verdict is
    stored for the machine. Does nothing unless "auto" selects Triton.

    Returns:
        {op: reason} of the disabled ops.
    """
    if not kernels.runs_triton(device):
        return {}
    ops = tuple(ops)
    key = verdicts.key(device, "triton")
    results = _results.setdefault(f"{verdicts.verdict_file()} {key}", {})
    known = {**results, **verdicts.known(device, "triton")}
    missing = [op for op in ops if op not in known]
    if missing:
        _log.info("Triton kernels are tried%s", once(verdicts.verdict_file()))
        found, lasting = _try(Job((TRITON, *missing), "triton", str(device), seconds=SECONDS))
        if lasting:
            verdicts.store(device, "triton", found)
        results.update(dict.fromkeys(missing) | found)
        known |= results
    # an op that failed in a step of this process stays disabled although its smallest case passes
    verdicts.apply("triton", {op: fault for op in ops if (fault := known[op]) is not None})
    return {op: kernels.refusals()[op, "triton"] for op in ops if (op, "triton") in kernels.refusals()}


def _try(job: Job) -> tuple[dict[str, str | None], bool]:
    """Run a job.

    Returns:
        The faults by op, without ops whose failure is not the kernel's; and whether to store them. A fault of the
        machine, such as a full disk, may be mended: it is stored only if the verdicts' key would change with it.
    """
    found: dict[str, str | None] = {}
    end = time.monotonic() + MAX_SECONDS
    try:
        with Processes() as processes:
            for outcome in processes.check(job):
                if outcome.fault is not None and any(word in outcome.fault for word in NO_VERDICT):
                    if outcome.op == TRITON:
                        return {}, False
                    continue
                if outcome.op == TRITON and outcome.fault is not None:
                    reason = verdicts.missing_tool() or outcome.fault
                    return dict.fromkeys(job.ops[1:], reason), verdicts.missing_tool() is not None
                found[outcome.op] = outcome.fault
                if time.monotonic() > end:
                    break
    except (OSError, RuntimeError) as error:
        _log.warning("kernels are not tried first: %s", line(error))
    found.pop(TRITON, None)
    return found, True


def disable_failing_op(error: BaseException, device: torch.device) -> str | None:
    """Disable the op whose Triton kernel raised an error; if it does not compile, for the whole machine.

    Returns:
        The op; None if no kernel raised the error, the error is no verdict on it, or the device is lost.
    """
    op = kernels.failing_op(error)
    reason = line(error)
    if op is None or (op, "triton") in kernels.refusals() or kernels.is_device_fault(error):
        return None
    if isinstance(error, torch.OutOfMemoryError) or any(word in reason for word in NO_VERDICT):
        return None
    fault = {op: f"fails in a step: {verdicts.missing_tool() or reason}"}
    verdicts.apply("triton", fault)
    kind = type(error)
    if kind.__module__.startswith("triton") and kind.__name__ != "OutOfResources":  # depends on the shape
        verdicts.store(device, "triton", fault)
    return op


def load_native() -> str | None:
    """Load torch.ops.fastlocal_native, as native.load, after each function was tried in another process.

    Wrong functions are disabled.

    Returns:
        The reason in one line if it is not available, else None.
    """
    path, reason = native.build_library(cache_file("native"))
    if path is None:
        return reason
    known = _native_verdicts(str(path.resolve()))
    verdicts.apply("native", known)
    faults = [fault for op in NATIVE_OPS if (fault := known.get(op)) is not None]
    if len(faults) == len(NATIVE_OPS):
        return faults[0]  # loading the library may be the crash
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
        verdicts.store(cpu, "native", found)
        known |= found
    return known


def native_lines(load: Callable[[], str | None] = load_native) -> list[str]:
    """Return log lines: the C++ operations that plain torch replaces, and why."""
    missing = load()
    if missing is not None:
        return [f"operations in C++: plain torch ({missing}; {verdicts.HINT})"]
    return verdicts.lines(NATIVE_OPS, "native")
