"""Verdicts on the kernels of this machine: stored in the user's cache, passed to `kernels`, printed in a line."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import shutil
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from fastlocal import kernels
from fastlocal.kernels import native

from ..common import disk_cache
from ..common.disk_cache import cache_file, key_of, machine_name

Verdicts = Mapping[str, str | None]
"""By op: what is wrong, in one line, or None."""
HINT = "fastlocal verify"
SHOWN = 3
"""Ops that a line names; where more are refused for one reason, it says how many."""


def verdict_file() -> Path:
    """Where verdicts are kept."""
    return cache_file("verified.json")


def key(device: torch.device, backend: str) -> str:
    """Of the machine, the device, the versions, the compilers and our sources: what a verdict holds for."""
    compilers = [str(c_compiler()), str(python_header())]
    if backend == "native":
        path, _ = native.compiled(cache_file("native"))
        compilers = [] if path is None else [path.name]  # which stands for all that it was compiled from
    if device.type == "cuda":
        compilers.append(_driver())
    interpreted = os.environ.get("TRITON_INTERPRET", "")
    return key_of(backend, device.type, machine_name(device), triton_version(), compilers, interpreted)


def known(device: torch.device, backend: str) -> dict[str, str | None]:
    """The verdicts that are kept."""
    found = disk_cache.get(verdict_file(), key(device, backend))
    if not isinstance(found, dict):
        return {}
    return {op: fault for op, fault in found.items() if fault is None or isinstance(fault, str)}


def any_fault() -> bool:
    """Whether anything is known to be wrong, on whatever device; in less time than `known` takes."""
    try:
        entries = json.loads(verdict_file().read_text(encoding="utf-8"))
        return any(fault is not None for verdict in entries.values() for fault in verdict.values())
    except (OSError, ValueError, AttributeError):
        return False


def remember(device: torch.device, backend: str, verdicts: Verdicts) -> None:
    """Keep verdicts beside, or in place of, those that are kept."""
    disk_cache.put(verdict_file(), key(device, backend), {**known(device, backend), **verdicts})


def take(backend: str, verdicts: Verdicts) -> None:
    """Have `kernels` refuse what is wrong, and nothing else of these."""
    for op, fault in verdicts.items():
        if fault is None:
            kernels.accept(op, backend)
        else:
            kernels.refuse(op, backend, f"{fault}; {HINT}")


def lines(ops: Iterable[str], backend: str) -> list[str]:
    """For a person: which of these ops plain torch takes over, and why; one line for each reason."""
    refused = kernels.refusals()
    ops = tuple(ops)
    by_reason: dict[str, list[str]] = {}
    for op in ops:
        if (op, backend) in refused:
            by_reason.setdefault(refused[op, backend], []).append(op)
    whole = {"triton": "Triton kernels", "native": "operations in C++"}.get(backend, "kernels")
    return [
        f"{whole if len(ops) > SHOWN and len(names) == len(ops) else _list(names)}: plain torch ({reason})"
        for reason, names in by_reason.items()
    ]


def lines_of(device: torch.device, ops: Iterable[str]) -> list[str]:
    """The same of what "auto" takes for these ops on a device, but for operations in C++."""
    ops = tuple(ops)
    if kernels.runs_triton(device):
        return lines(ops, "triton")
    return lines([op for op in ops if op in kernels.CPU_OPS], "cpu") if device.type == "cpu" else []


def _list(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:SHOWN])} and {more} more"


def _driver() -> str:
    """The NVIDIA driver that is loaded; empty where that cannot be told."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@functools.cache
def triton_version() -> str:
    """Of the installed Triton, which is not imported for it; empty where there is none."""
    for name in ("triton", "pytorch-triton"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def c_compiler() -> str | None:
    """What Triton compiles its launchers with."""
    given = os.environ.get("CC")
    return shutil.which(given) if given else shutil.which("gcc") or shutil.which("clang")


def python_header() -> Path | None:
    """Python.h, which a launcher includes."""
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme  # as Triton looks for it
    path = Path(sysconfig.get_paths(scheme=scheme)["include"]) / "Python.h"
    return path if path.is_file() else None


def lacking() -> str | None:
    """What Triton's launchers cannot be compiled without and this machine has not, or None."""
    if c_compiler() is None:
        given = os.environ.get("CC")
        return f"there is no C compiler: {f'$CC is {given}' if given else 'neither gcc nor clang'}"
    if python_header() is None:
        return "Python.h is missing: install Python's headers (python3-dev)"
    return None
