"""Measurements and verdicts about this machine, stored as JSON in the user's cache directory."""

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

MAX_ENTRIES = 1000
"""Entries of a file; put drops the oldest."""
SOURCES = tuple(Path(__file__).parents[1] / name for name in ("executors", "kernels", "kernel_trial"))
"""Folders of the code that decides the speed of a step and the verdict on a kernel."""
SOURCE_SUFFIXES = (".py", ".cpp", ".h")


def cache_file(name: str) -> Path:
    """Return the path of a cache file: $XDG_CACHE_HOME/fastlocal/NAME, else ~/.cache/fastlocal/NAME.

    Without a home directory the path lies below /dev/null, where no file can be written.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(home):
        return Path(home) / "fastlocal" / name
    try:
        return Path("~/.cache").expanduser() / "fastlocal" / name
    except RuntimeError:  # a user whom the machine does not know, as in a container
        return Path(os.devnull) / "fastlocal" / name


def key_of(*about: Any) -> str:
    """Hash all values that an entry depends on; each must be JSON-serializable."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def machine_name(device: torch.device) -> list[str]:
    """Return the host, the device, and the versions of torch, Python and our own code."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return [platform.node(), name, torch.__version__, platform.python_version(), _own_code()]


def _own_code() -> str:
    digest = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in folder.rglob("*.*") if path.suffix in SOURCE_SUFFIXES):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def get(path: Path, key: str) -> Any:
    """Return the entry under `key`, or None; an unreadable file has no entries."""
    return _entries(path).get(key)


def put(path: Path, key: str, value: Any) -> bool:
    """Store a JSON-serializable value.

    The file is replaced atomically, so that a reader never finds half of it. Writers take turns, so that none loses an
    entry of another.

    Returns:
        Whether the entry was stored; False if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.parent):
            entries = _entries(path)
            entries.pop(key, None)
            entries[key] = value
            text = json.dumps(dict(list(entries.items())[-MAX_ENTRIES:]), indent=1)
            write_atomically(path, lambda file: file.write(text.encode()))
    except OSError:
        return False
    return True


def once(path: Path) -> str:
    """Return ", once for this machine" if `path` can be written, else ""."""
    place = next(folder for folder in path.parents if folder.exists())
    return ", once for this machine" if place.is_dir() and os.access(place, os.W_OK | os.X_OK) else ""


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock the folder itself. Some network file systems have no locks; there, writers do not wait."""
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
