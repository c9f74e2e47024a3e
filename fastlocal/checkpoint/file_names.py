"""Files of a run directory that hold its saved states, and their order."""

from __future__ import annotations

import re
from pathlib import Path

from ..params.disk_store import FOLDER_NAME
from ..params.row_journal import forget, has_journals
from .state_file import DamagedState, read_metadata

RESUME_NAME = "resume.pt"
EARLIER_NAMES = "resume.*.pt"
PART_NAMES = "resume.*.part"


def saved_paths(directory: Path) -> list[Path]:
    """Return the existing resume.pt, resume.1.pt, resume.2.pt ..., newest first."""
    found = ((re.fullmatch(r"resume\.(\d+)\.pt", path.name), path) for path in directory.glob(EARLIER_NAMES))
    numbered = sorted((int(match[1]), path) for match, path in found if match)
    newest = directory / RESUME_NAME
    return ([newest] if newest.exists() else []) + [path for _, path in numbered]


def part_name(save: int, rank: int) -> str:
    """Return the file name of one rank's part, unique to a save, so that no save overwrites another's parts."""
    return f"resume.{save}.{rank}.part"


def last_save(directory: Path) -> int:
    """Return the largest save number among the parts, or 0."""
    found = (re.fullmatch(r"resume\.(\d+)\.\d+\.part", path.name) for path in directory.glob(PART_NAMES))
    return max((int(match[1]) for match in found if match), default=0)


def remove_unreferenced_parts(directory: Path) -> None:
    """Remove the parts that no saved state lists: those of removed states and of unfinished saves."""
    parts = list(directory.glob(PART_NAMES))
    if parts:
        listed = {name for path in saved_paths(directory) for name in _part_names(path)}
        for path in parts:
            if path.name not in listed:
                path.unlink(missing_ok=True)


def remove_old_journals(directory: Path) -> None:
    """Remove the journals of clients' rows that lead back to no saved state."""
    if has_journals(directory / FOLDER_NAME):
        epochs = [epoch for path in saved_paths(directory) for epoch in _epoch(path)]
        if epochs:
            forget(directory / FOLDER_NAME, min(epochs))


def _epoch(path: Path) -> list[int]:
    """Return the epoch of the clients' rows to which a state belongs, if there is one."""
    try:
        return [int(read_metadata(path)["client_store"]["epoch"])]
    except (DamagedState, KeyError, TypeError, ValueError):
        return []


def _part_names(path: Path) -> set[str]:
    try:
        return {part["name"] for part in read_metadata(path).get("parts", [])}
    except (DamagedState, KeyError, TypeError):
        return set()
