"""Checks of the software and compilers of the machine."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from fastlocal import kernels
from fastlocal.kernels import native

from ..common.disk_cache import cache_file
from ..kernel_trial import verdicts
from .checks import Check


def environment(device: torch.device) -> Iterator[Check]:
    """Yield checks of versions, the device, and the compilers of its kernels."""
    triton = verdicts.triton_version() or "none"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, Triton {triton}"
    yield Check("environment", "versions", None, versions)
    if device.type == "cuda":
        yield from _cuda(device)
    else:
        yield Check("environment", "device", None, platform.machine())
        yield _native()


def _cuda(device: torch.device) -> Iterator[Check]:
    major, minor = torch.cuda.get_device_capability(device)
    words = f"capability {major}.{minor}, CUDA {torch.version.cuda}, driver {_driver()}"
    yield Check("environment", "device", None, f"{torch.cuda.get_device_name(device)}, {words}")
    if (major, minor) < kernels.CAPABILITY:
        needed = ".".join(map(str, kernels.CAPABILITY))
        yield Check("environment", "Triton", None, f"not used: kernels are for capability {needed} and newer")
        return
    compiler, header = verdicts.c_compiler(), verdicts.python_header()
    fault = None if verdicts.triton_version() else "triton is not installed"
    yield Check("environment", "Triton's compilers", fault or verdicts.missing_tool(), f"{compiler}, {header}")


def _driver() -> str:
    """Return the version of the NVIDIA driver, as its kernel module reports it."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
    except OSError:
        return "unknown"
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def _native() -> Check:
    path, missing = native.build_library(cache_file("native"))
    return Check("environment", "operations in C++", missing, "" if path is None else f"compiled, {path}")
