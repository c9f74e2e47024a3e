"""Which files of a run directory hold its saved states, and in which order."""

from __future__ import annotations

import re
from pathlib import Path

from .state_file import DamagedState, read_numbers

RESUME_NAME = "resume.pt"
EARLIER_NAMES = "resume.*.pt"
PART_NAMES = "resume.*.part"


def saved_paths(directory: Path) -> list[Path]:
    """resume.pt, resume.1.pt, resume.2.pt ..., newest first, as far as they are there."""
    found = ((re.fullmatch(r"resume\.(\d+)\.pt", path.name), path) for path in directory.glob(EARLIER_NAMES))
    numbered = sorted((int(match[1]), path) for match, path in found if match)
    newest = directory / RESUME_NAME
    return ([newest] if newest.exists() else []) + [path for _, path in numbered]


def part_name(save: int, rank: int) -> str:
    """The file of what one rank alone holds; no other save has it, so that none is written over."""
    return f"resume.{save}.{rank}.part"


def last_save(directory: Path) -> int:
    """The largest number of a save that has left a part, 0 where none has."""
    found = (re.fullmatch(r"resume\.(\d+)\.\d+\.part", path.name) for path in directory.glob(PART_NAMES))
    return max((int(match[1]) for match in found if match), default=0)


def remove_unnamed_parts(directory: Path) -> None:
    """Remove the parts that no saved state names: of states that made place, and of saves that did not end."""
    parts = list(directory.glob(PART_NAMES))
    if parts:
        named = {name for path in saved_paths(directory) for name in _named(path)}
        for path in parts:
            if path.name not in named:
                path.unlink(missing_ok=True)


def _named(path: Path) -> set[str]:
    try:
        return {part["name"] for part in read_numbers(path).get("parts", [])}
    except (DamagedState, KeyError, TypeError):
        return set()
