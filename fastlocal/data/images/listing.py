"""The image files below a folder, found as torchvision's ImageFolder finds them, and what is passed over."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
"""Of the files that count as images, in lower case."""
NAMED = 5
"""Suffixes that a line names; the rest are counted."""


@dataclass
class PassedOver:
    """What lies in the folders of a data set and is no sample of it.

    suffixes: how many files of other kinds there are, by suffix        hidden: names that begin with a dot
    outside: image files beside the class folders
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    hidden: list[str] = field(default_factory=list)
    outside: int = 0

    def lines(self) -> Iterator[str]:
        """For a person, one line for each kind."""
        if self.suffixes:
            most = sorted(self.suffixes.items(), key=lambda counted: (-counted[1], counted[0]))[:NAMED]
            shown = [f"{suffix or 'without suffix'} {count}" for suffix, count in most]
            more = ", and others" if len(self.suffixes) > NAMED else ""
            total = self.suffixes.total()
            kinds = f"{', '.join(shown)}{more}"
            yield f"passes over {_count(total, 'file')} of other kinds ({kinds}); images are {' '.join(SUFFIXES)}"
        if self.hidden:
            yield f"passes over {_count(len(self.hidden), 'name')} with a dot before it, such as {self.hidden[0]}"
        if self.outside:
            yield f"passes over {_count(self.outside, 'image')} outside the class folders"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def image_files(folder: Path, over: PassedOver) -> list[Path]:
    """The image files at any depth, sorted by their folder and then by name; links are followed.

    A link to a folder that it lies in is not entered: it holds nothing new.

    Args:
        folder: Of one class.
        over: Takes note of what is passed over.

    Raises:
        OSError: A folder cannot be read.
    """
    above = {str(folder): frozenset({_identity(str(folder))})}
    found: list[tuple[str, list[str]]] = []
    for place, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        over.hidden += [name for name in (*folders, *names) if name.startswith(".")]
        entered = []
        for name in folders:
            path = os.path.join(place, name)
            identity = _identity(path)
            if not name.startswith(".") and identity not in above[place]:
                above[path] = above[place] | {identity}
                entered.append(name)
        folders[:] = entered
        plain = [name for name in names if not name.startswith(".")]
        over.suffixes.update(os.path.splitext(name)[1].lower() for name in plain if not _is_image(name))
        found.append((place, sorted(filter(_is_image, plain))))
    return [Path(place, name) for place, names in sorted(found) for name in names]


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _raise(error: OSError) -> NoReturn:
    raise error
