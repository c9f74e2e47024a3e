"""The run directory: where it is, whether it may be used, and what it holds first."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from ..common.atomic_file import TEMPORARY_SUFFIX, write_atomically
from ..common.errors import UsageError
from ..config.schema import RunConfig
from .file_names import remove_unnamed_parts
from .lock import refuse_locked

RUN_MARKERS = ("config.json", "metrics.jsonl", "latest.pt")
"""Any of these files shows that a folder holds a run."""
LAUNCH_NAME = ".launch"
"""Names the launchers, a line each, that start the run again where one of its processes ends."""
RUN_FILES = (
    *RUN_MARKERS,
    LAUNCH_NAME,
    "steps.jsonl",
    "resume.pt",
    "resume.*.pt",
    "resume.*.part",
    "H=*.pt",
    "phase_epoch=*.pt",
    "events.out.tfevents.*",
    f".*{TEMPORARY_SUFFIX}",
)
"""What a run writes; --overwrite removes these and nothing else."""


def default_directory(name: str) -> Path:
    """A fresh runs/NAME_TIME below the working folder."""
    base = Path("runs") / f"{name}_{time.strftime('%Y%m%d-%H%M%S')}"
    path, tries = base, 1
    while path.exists():
        tries += 1
        path = base.with_name(f"{base.name}-{tries}")
    return path.absolute()


def check_directory(path: Path, overwrite: bool) -> None:
    """Raise UsageError where `path` cannot become the run directory; changes nothing."""
    if os.path.exists(path) and not os.path.isdir(path):
        raise UsageError(f"--log-pth {path}: is a file; give a folder")
    found = [name for name in RUN_MARKERS if os.path.exists(path / name)]
    if found and not overwrite:
        raise UsageError(f"--log-pth {path}: already holds a run ({found[0]}); give another folder or --overwrite 1")
    if os.path.isdir(path):
        refuse_locked(path)
    there = next(parent for parent in (path, *path.parents) if os.path.exists(parent) or parent == parent.parent)
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"--log-pth {path}: {there} cannot be written to; give another folder")


def is_begun_by(launches: Sequence[str], path: Path) -> bool:
    """Whether the run in `path` was begun, or gone on with, by one of these launchers."""
    launched = path / LAUNCH_NAME
    return launched.exists() and not set(launches).isdisjoint(launched.read_text().splitlines())


def make_directory(path: Path) -> None:
    """Make `path` where it is not there; raises UsageError where it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def create_directory(path: Path, config: RunConfig, launches: Sequence[str] = ()) -> None:
    """Remove an earlier run's files from `path`, which exists, and write config.json.

    launches: of what starts the run again

    Raises UsageError where it cannot be written, and where the start weights are among the files to remove.
    """
    start = config.model.resume_pth
    try:
        # files that only look like ours, in a folder without a run, belong to somebody else
        earlier = sorted(old for pattern in RUN_FILES for old in path.glob(pattern)) if _holds_run(path) else []
        if start is not None and any(os.path.samefile(old, start) for old in earlier if os.path.exists(start)):
            raise UsageError(f"--resume-pth {start}: --overwrite 1 would remove it with the earlier run; move it first")
        for old in earlier:
            old.unlink()
        _write(path, config, launches)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"--log-pth {path}: cannot be written ({error.strerror or error}); give another")


def reopen_directory(path: Path, config: RunConfig, launches: Sequence[str] = ()) -> None:
    """Write the config.json of a run that goes on, and remove what a killed process left half-written or unnamed."""
    for left in path.glob(f".*{TEMPORARY_SUFFIX}"):
        left.unlink()
    remove_unnamed_parts(path)
    _write(path, config, launches)


def _write(path: Path, config: RunConfig, launches: Sequence[str]) -> None:
    if launches:
        write_atomically(path / LAUNCH_NAME, lambda file: file.write("\n".join(launches).encode()))
    write_atomically(path / "config.json", lambda file: file.write(config.to_json().encode()))


def _holds_run(path: Path) -> bool:
    return any((path / name).exists() for name in RUN_MARKERS)
