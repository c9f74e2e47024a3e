"""The run directory: where it is, whether it may be used, and what it holds first."""

from __future__ import annotations

import time
from pathlib import Path

from .checkpoint import write_atomically
from .config import RunConfig
from .errors import UsageError

OURS = ("config.json", "metrics.jsonl", "steps.jsonl", "*.pt", "events.out.tfevents.*")


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
    if path.exists() and not path.is_dir():
        raise UsageError(f"--log-pth {path}: is a file; give a folder")
    if (path / "config.json").exists() and not overwrite:
        raise UsageError(f"--log-pth {path}: already holds a run; give another folder or --overwrite 1")


def create_directory(path: Path, config: RunConfig) -> None:
    """Make `path`, remove an earlier run's files from it, and write config.json."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        for pattern in OURS:
            for old in path.glob(pattern):
                old.unlink()
        write_atomically(path / "config.json", lambda file: file.write(config.to_json().encode()))
    except OSError as error:
        raise UsageError(f"--log-pth {path}: cannot be written ({error.strerror or error}); give another") from error
