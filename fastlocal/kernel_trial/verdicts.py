"""Verdicts on the kernels of this machine: stored in the user's cache, applied to `kernels`, printed as log lines."""

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
"""{op: its fault in one line, or None}."""
HINT = "fastlocal verify"
MAX_NAMES = 3
"""Ops that a log line names; it counts the others."""


def verdict_file() -> Path:
    """Return the path of the stored verdicts."""
    return cache_file("verified.json")


def key(device: torch.device, backend: str) -> str:
    """Hash the machine, device, versions, compilers and our sources, on which a verdict depends."""
    compilers = [str(c_compiler()), str(python_header())]
    if backend == "native":
        path, _ = native.build_library(cache_file("native"))
        compilers = [] if path is None else [path.name]  # its name is a hash of sources and compiler
    if device.type == "cuda":
        compilers.append(_driver())
    interpreted = os.environ.get("TRITON_INTERPRET", "")
    return key_of(backend, device.type, machine_name(device), triton_version(), compilers, interpreted)


def known(device: torch.device, backend: str) -> dict[str, str | None]:
    """Return the stored verdicts."""
    found = disk_cache.get(verdict_file(), key(device, backend))
    if not isinstance(found, dict):
        return {}
    return {op: fault for op, fault in found.items() if fault is None or isinstance(fault, str)}


def any_fault() -> bool:
    """Return True if any verdict of any device is a fault; faster than `known`."""
    try:
        entries = json.loads(verdict_file().read_text(encoding="utf-8"))
        return any(fault is not None for verdict in entries.values() for fault in verdict.values())
    except (OSError, ValueError, AttributeError):
        return False


def store(device: torch.device, backend: str, verdicts: Verdicts) -> None:
    """Add verdicts to the stored ones, or replace them."""
    disk_cache.put(verdict_file(), key(device, backend), {**known(device, backend), **verdicts})


def apply(backend: str, verdicts: Verdicts) -> None:
    """Disable the wrong ops in `kernels`, and enable the others."""
    for op, fault in verdicts.items():
        if fault is None:
            kernels.accept(op, backend)
        else:
            kernels.refuse(op, backend, f"{fault}; {HINT}")


def lines(ops: Iterable[str], backend: str) -> list[str]:
    """Return log lines: the ops that plain torch replaces, and why; one line per reason."""
    refusals = kernels.refusals()
    ops = tuple(ops)
    by_reason: dict[str, list[str]] = {}
    for op in ops:
        if (op, backend) in refusals:
            by_reason.setdefault(refusals[op, backend], []).append(op)
    whole = {"triton": "Triton kernels", "native": "operations in C++"}.get(backend, "kernels")
    return [
        f"{whole if len(ops) > MAX_NAMES and len(names) == len(ops) else _list(names)}: plain torch ({reason})"
        for reason, names in by_reason.items()
    ]


def lines_for(device: torch.device, ops: Iterable[str]) -> list[str]:
    """Return the log lines for the backend that "auto" selects on a device, without operations in C++."""
    ops = tuple(ops)
    if kernels.runs_triton(device):
        return lines(ops, "triton")
    return lines([op for op in ops if op in kernels.CPU_OPS], "cpu") if device.type == "cpu" else []


def _list(names: list[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:MAX_NAMES])} and {more} more"


def _driver() -> str:
    """Return the version text of the loaded NVIDIA driver, or ""."""
    try:
        return Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@functools.cache
def triton_version() -> str:
    """Return the installed version of Triton without importing it, or ""."""
    for name in ("triton", "pytorch-triton"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def c_compiler() -> str | None:
    """Return the compiler of Triton's launchers."""
    compiler = os.environ.get("CC")
    return shutil.which(compiler) if compiler else shutil.which("gcc") or shutil.which("clang")


def python_header() -> Path | None:
    """Return the path of Python.h, which a launcher includes."""
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme  # as Triton looks for it
    path = Path(sysconfig.get_paths(scheme=scheme)["include"]) / "Python.h"
    return path if path.is_file() else None


def missing_tool() -> str | None:
    """Return what this machine lacks to compile Triton's launchers, or None."""
    if c_compiler() is None:
        compiler = os.environ.get("CC")
        return f"there is no C compiler: {f'$CC is {compiler}' if compiler else 'neither gcc nor clang'}"
    if python_header() is None:
        return "Python.h is missing: install Python's headers (python3-dev)"
    return None
