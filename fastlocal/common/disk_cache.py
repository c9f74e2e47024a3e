"""What was found out about this machine, kept in a file of the user's cache."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .atomic_file import write_atomically

MOST = 1000
"""Entries that are kept, the latest."""
SOURCES = tuple(Path(__file__).parents[1] / name for name in ("executors", "kernels", "kernel_trial"))
"""Our own code that decides how fast a step is, and whether its kernels are right."""
WRITTEN = (".py", ".cpp", ".h")


def cache_file(name: str) -> Path:
    """NAME in $XDG_CACHE_HOME/fastlocal, or in ~/.cache/fastlocal; where there is no home, where nothing can be."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(home):
        return Path(home) / "fastlocal" / name
    try:
        return Path("~/.cache").expanduser() / "fastlocal" / name
    except RuntimeError:  # a user whom the machine does not know, as in a container
        return Path(os.devnull) / "fastlocal" / name


def key_of(*about: Any) -> str:
    """A short key of all that a value depends on, which JSON can hold."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def machine_name(device: torch.device) -> list[str]:
    """The machine, the device in it, and the versions that decide how fast it is, our own code's among them."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return [platform.node(), name, torch.__version__, platform.python_version(), _own_code()]


def _own_code() -> str:
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in folder.rglob("*.*") if path.suffix in WRITTEN):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def get(path: Path, key: str) -> Any:
    """What was kept under `key`, or None; a file that cannot be read holds nothing."""
    return _entries(path).get(key)


def put(path: Path, key: str, value: Any) -> bool:
    """Keep a value that JSON can hold.

    The file is replaced as a whole, so that who reads it meanwhile never finds half of one; who writes it meanwhile
    waits, so that none loses its entry.

    Returns:
        Whether it is kept: not where nothing can be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent):
            entries = _entries(path)
            entries.pop(key, None)
            entries[key] = value
            text = json.dumps(dict(list(entries.items())[-MOST:]), indent=1)
            write_atomically(path, lambda file: file.write(text.encode()))
    except OSError:
        return False
    return True


def once(path: Path) -> str:
    """ ", once for this machine" where what is found out can be kept in `path`, else an empty string."""
    place = next(folder for folder in path.parents if folder.exists())
    return ", once for this machine" if place.is_dir() and os.access(place, os.W_OK | os.X_OK) else ""


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock of the folder itself; some network file systems have none, and there nobody waits."""
    file = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _entries(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
