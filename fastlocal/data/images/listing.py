"""List the image files below a folder as torchvision's ImageFolder does, and count ignored files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of image files, in any case."""
MAX_NAMED = 5
"""Suffixes that a message names."""


@dataclass
class IgnoredFiles:
    """Files in the folders of a data set that are not samples.

    Attributes:
        suffixes: Number of files that are not images, by suffix.
        hidden: Names that begin with a dot.
        outside: Number of image files outside the class folders.
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    hidden: list[str] = field(default_factory=list)
    outside: int = 0

    def lines(self) -> Iterator[str]:
        """Yield one log line for each kind of ignored files."""
        if self.suffixes:
            most = sorted(self.suffixes.items(), key=lambda counted: (-counted[1], counted[0]))[:MAX_NAMED]
            names = [f"{suffix or 'without suffix'} {count}" for suffix, count in most]
            more = ", and others" if len(self.suffixes) > MAX_NAMED else ""
            total = self.suffixes.total()
            kinds = f"{', '.join(names)}{more}"
            yield f"passes over {_count(total, 'file')} of other kinds ({kinds}); images are {' '.join(SUFFIXES)}"
        if self.hidden:
            yield f"passes over {_count(len(self.hidden), 'name')} with a dot before it, such as {self.hidden[0]}"
        if self.outside:
            yield f"passes over {_count(self.outside, 'image')} outside the class folders"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def image_files(folder: Path, ignored: IgnoredFiles) -> list[Path]:
    """List the image files at any depth, sorted by folder and then by name.

    Links are followed, except a link to a folder that contains it.

    Args:
        folder: Folder of one class.
        ignored: Collects the ignored files.

    Raises:
        OSError: A folder cannot be read.
    """
    above = {str(folder): frozenset({_identity(str(folder))})}
    found: list[tuple[str, list[str]]] = []
    for place, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        ignored.hidden += [name for name in (*folders, *names) if name.startswith(".")]
        to_visit = []
        for name in folders:
            path = os.path.join(place, name)
            identity = _identity(path)
            if not name.startswith(".") and identity not in above[place]:
                above[path] = above[place] | {identity}
                to_visit.append(name)
        folders[:] = to_visit
        plain = [name for name in names if not name.startswith(".")]
        ignored.suffixes.update(os.path.splitext(name)[1].lower() for name in plain if not _is_image(name))
        found.append((place, sorted(filter(_is_image, plain))))
    return [Path(place, name) for place, names in sorted(found) for name in names]


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _raise(error: OSError) -> NoReturn:
    raise error
