"""C++ operations for CPU steps without Python: compiled on first use, and cached.

They use torch's stable ABI, and TorchScript calls them without the interpreter lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ..cores import machine_cores
from ..refusals import refusals

FOLDER = Path(__file__).parent
ACTIVATIONS = {"none": 0, "relu": 1, "silu": 2}
"""Numbers of the activations of group_norm_act and max_pool_act."""
SECONDS = 180.0
ABI = "0x020b000000000000"
"""Torch 2.11, the oldest version that setup.py allows."""
FLAGS = ["-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC"]

_loaded = threading.Event()


@functools.cache
def load(folder: Path) -> str | None:
    """Load torch.ops.fastlocal_native from a library in `folder`, and compile it on first use: 5 to 20 s.

    Returns:
        The reason in one line if it is not available, else None.
    """
    path, missing = build_library(folder)
    if path is None:
        return missing
    try:
        torch.ops.load_library(str(path))
    except OSError:  # the cached library is damaged
        path.unlink(missing_ok=True)
        path, missing = build_library(folder)
        if path is None:
            return missing
        try:
            torch.ops.load_library(str(path))
        except OSError as error:
            return " ".join(str(error).split())
    _loaded.set()
    return None


def build_library(folder: Path) -> tuple[Path | None, str | None]:
    """Compile the library in `folder` unless it exists, without loading it.

    Returns:
        (path, None), or (None, the reason why it is not available).
    """
    if sys.platform != "linux":
        return None, f"it is made for Linux, not for {sys.platform}"
    compiler = next(filter(None, map(shutil.which, [os.environ.get("CXX") or "c++", "g++", "clang++"])), None)
    if compiler is None:
        return None, "there is no C++ compiler: neither $CXX, c++, g++ nor clang++"
    path = folder / f"native-{_key(compiler)}.so"
    try:
        if not path.exists():
            with _lock(folder):
                if not path.exists():
                    _compile(compiler, path)
    except subprocess.SubprocessError as error:
        output = getattr(error, "stderr", None) or b""
        lines = [line for line in output.decode(errors="replace").splitlines() if "error" in line]
        return None, f"{compiler} does not compile it: {lines[0] if lines else error}"
    except OSError as error:
        return None, " ".join(str(error).split())
    return path, None


def is_loaded() -> bool:
    """Return True if `load` has succeeded."""
    return _loaded.is_set()


def has(op: str) -> bool:
    """Return True if `load` has succeeded, and `op` is not disabled."""
    return is_loaded() and (op, "native") not in refusals()


def _key(compiler: str) -> str:
    """Hash everything the library depends on, including the processor, for which it is compiled."""
    digest = hashlib.sha256()
    for path in sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h"), FOLDER / "__init__.py"]):
        digest.update(path.read_bytes())
    try:
        cpu = re.findall(r"^(?:flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        cpu = []
    versions = [compiler, torch.__version__, platform.machine(), *cpu[:1]]
    digest.update("\n".join(versions).encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, for which the other ranks of a node wait instead of compiling the same.

    Where the file system has no locks, several processes compile at once, and the last one's file stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(compiler: str, path: Path) -> None:
    """Compile the library into a file of its own, which then takes its place."""
    torch_folder = Path(torch.__file__).parent
    flags = [*FLAGS, *(["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else [])]
    flags += [f"-DTORCH_TARGET_VERSION={ABI}", f"-isystem{torch_folder / 'include'}"]

    def run(*arguments: str | Path) -> None:
        subprocess.run([compiler, *map(str, arguments)], check=True, capture_output=True, timeout=SECONDS)

    with tempfile.TemporaryDirectory(dir=path.parent) as folder, ThreadPoolExecutor(machine_cores()) as pool:
        logging.getLogger(__name__).info("operations in C++ are compiled, once for this machine: up to 20 s")
        sources = {Path(folder) / f"{source.stem}.o": source for source in sorted(FOLDER.glob("*.cpp"))}
        for task in [pool.submit(run, *flags, "-c", source, "-o", object_) for object_, source in sources.items()]:
            task.result()
        library = Path(folder) / path.name
        run("-shared", *sources, "-o", library, f"-L{torch_folder / 'lib'}", "-ltorch_cpu")
        library.replace(path)
