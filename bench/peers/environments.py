"""Environments of the peers: one each, with pinned versions, made once and kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

STAMP = "installed"
"""File in an environment that is whole; it holds what was asked for."""


@dataclass(frozen=True)
class Environment:
    """The packages and the Python of a peer.

    Attributes:
        packages: Pinned requirements.
        python: Version of Python, such as "3.12"; None: that of this process.
        torch: Whether the peer uses torch. It then gets this process's version of it, and the very files where Python's
            version is the same.
    """

    packages: tuple[str, ...]
    python: str | None = None
    torch: bool = True


class Missing(Exception):
    """An environment cannot be made; the message says why, in a line."""


def make(name: str, environment: Environment, folder: Path) -> Path:
    """Return the interpreter of an environment, which is made if it is not there.

    Raises:
        Missing: Python's version is not on this machine, or pip fails.
    """
    base = find_python(environment.python)
    place = folder / name
    python, stamp = place / "bin" / "python", place / STAMP
    same = environment.python in (None, this_python())
    packages = [*environment.packages]
    if environment.torch and not same:
        packages.append(f"torch=={version('torch').partition('+')[0]}")
    wanted = "\n".join([*packages, sys.prefix if environment.torch and same else ""])
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"making the environment of {name}: {' '.join(packages)}", flush=True)
    _run([base, "-m", "venv", "--clear", str(place)])
    if environment.torch and same:
        libraries = next((place / "lib").glob("python*")) / "site-packages"
        (libraries / "torch_of_fastlocal.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    _run([str(python), "-m", "pip", "install", "--quiet", *packages])
    stamp.write_text(wanted, encoding="utf-8")
    return python


def this_python() -> str:
    """Return this process's version of Python, such as "3.11"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def find_python(wanted: str | None) -> str:
    """Return an interpreter of a version: this one, python3.X of the PATH, or the newest of pyenv.

    Raises:
        Missing: There is none.
    """
    if wanted in (None, this_python()):
        return sys.executable
    found = shutil.which(f"python{wanted}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    installed = sorted(pyenv.glob(f"{wanted}.*/bin/python"), reverse=True)
    for python in [*([found] if found else []), *map(str, installed)]:
        if subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
            return python
    raise Missing(f"needs Python {wanted}")


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = [line for line in (result.stderr or result.stdout).splitlines() if line.strip()]
        raise Missing(f"{' '.join(command[1:4])} failed: {lines[-1] if lines else ''}")
