"""The run directory: its default, its checks, and its first files."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.atomic_file import TEMPORARY_SUFFIX, write_atomically
from ..common.errors import UsageError
from ..config.schema import RunConfig
from ..params.disk_store import FOLDER_NAME, IDENTITY_NAME, go_back
from ..params.row_files import ROWS_SUFFIX
from ..params.row_journal import JOURNAL_SUFFIX
from .file_names import remove_unreferenced_parts
from .lock import refuse_locked

RUN_MARKERS = ("config.json", "metrics.jsonl", "latest.pt")
"""Files that mark a folder as a run directory."""
LAUNCH_NAME = ".launch"
"""File with the ids of the launchers that restart the run's processes, one per line."""
RUN_FILES = (
    *RUN_MARKERS,
    LAUNCH_NAME,
    "steps.jsonl",
    "clients.jsonl",
    "resume.pt",
    "resume.*.pt",
    "resume.*.part",
    "H=*.pt",
    "phase_epoch=*.pt",
    "round=*.pt",
    "partition.npz",
    "client_test.npz",
    "events.out.tfevents.*",
    f".*{TEMPORARY_SUFFIX}",
    f"{FOLDER_NAME}/{IDENTITY_NAME}",
    f"{FOLDER_NAME}/*{ROWS_SUFFIX}",
    f"{FOLDER_NAME}/*{JOURNAL_SUFFIX}",
    f"{FOLDER_NAME}/.*{TEMPORARY_SUFFIX}",
)
"""Files that a run writes; --overwrite removes only these."""


def default_directory(name: str) -> Path:
    """Return a new runs/NAME_TIME below the working folder."""
    base = Path("runs") / f"{name}_{time.strftime('%Y%m%d-%H%M%S')}"
    path, tries = base, 1
    while path.exists():
        tries += 1
        path = base.with_name(f"{base.name}-{tries}")
    return path.absolute()


def check_directory(path: Path, overwrite: bool) -> None:
    """Raise UsageError if `path` cannot become the run directory; changes nothing."""
    if os.path.exists(path) and not os.path.isdir(path):
        raise UsageError(f"--log-pth {path}: is a file; give a folder")
    found = [name for name in RUN_MARKERS if os.path.exists(path / name)]
    if found and not overwrite:
        raise UsageError(f"--log-pth {path}: already holds a run ({found[0]}); give another folder or --overwrite 1")
    if os.path.isdir(path):
        refuse_locked(path)
    existing = next(parent for parent in (path, *path.parents) if os.path.exists(parent) or parent == parent.parent)
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"--log-pth {path}: {existing} cannot be written to; give another folder")


def belongs_to_launch(launch_ids: Sequence[str], path: Path) -> bool:
    """Return True if one of these launchers began or continued the run in `path`."""
    file = path / LAUNCH_NAME
    return file.exists() and not set(launch_ids).isdisjoint(file.read_text().splitlines())


def make_directory(path: Path) -> None:
    """Make `path` if it does not exist; raises UsageError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def create_directory(path: Path, config: RunConfig, launch_ids: Sequence[str] = ()) -> None:
    """Remove the files of an earlier run from `path`, and write config.json.

    Args:
        path: An existing folder.
        config: Settings of the run.
        launch_ids: Ids of the launchers that restart the run.

    Raises:
        UsageError: The folder cannot be written, or the start weights are among the files to remove.
    """
    start = config.model.resume_pth
    try:
        # in a folder without a run, files with our names are not ours
        earlier = sorted(old for pattern in RUN_FILES for old in path.glob(pattern)) if _holds_run(path) else []
        if start is not None and any(os.path.samefile(old, start) for old in earlier if os.path.exists(start)):
            raise UsageError(f"--resume-pth {start}: --overwrite 1 would remove it with the earlier run; move it first")
        for old in earlier:
            old.unlink()
        if earlier:
            with contextlib.suppress(OSError):  # with files of others it stays
                (path / FOLDER_NAME).rmdir()
        _write(path, config, launch_ids)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"--log-pth {path}: cannot be written ({error.strerror or error}); give another")


def reopen_directory(
    path: Path, config: RunConfig, launch_ids: Sequence[str] = (), client_store: Mapping[str, Any] | None = None
) -> None:
    """Write config.json of a run that continues; remove temporary files and unreferenced parts of a killed process.

    Args:
        path: The run directory.
        config: Settings of the run.
        launch_ids: Ids of the launchers that restart the run.
        client_store: What the state says of clients' rows in files, which go back to it; None if there are none.

    Raises:
        UsageError: The files of clients' rows are not those of the run.
    """
    if client_store is not None:
        go_back(path / FOLDER_NAME, client_store)
    for file in path.glob(f".*{TEMPORARY_SUFFIX}"):
        file.unlink()
    remove_unreferenced_parts(path)
    _write(path, config, launch_ids)


def _write(path: Path, config: RunConfig, launch_ids: Sequence[str]) -> None:
    if launch_ids:
        write_atomically(path / LAUNCH_NAME, lambda file: file.write("\n".join(launch_ids).encode()))
    write_atomically(path / "config.json", lambda file: file.write(config.to_json().encode()))


def _holds_run(path: Path) -> bool:
    return any((path / name).exists() for name in RUN_MARKERS)
