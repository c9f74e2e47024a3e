"""List the image files below a folder as torchvision's ImageFolder does, and count the files that are skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
"""A file with one of these suffixes, in any case, is an image."""
NAMED = 5
"""A message names at most this many suffixes."""


@dataclass
class PassedOver:
    """The files in the folders of a data set that are not samples of it.

    Attributes:
        suffixes: The number of files that are not images, by suffix.
        hidden: The names that begin with a dot.
        outside: The number of image files that lie in no class folder.
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    hidden: list[str] = field(default_factory=list)
    outside: int = 0

    def lines(self) -> Iterator[str]:
        """Describe the skipped files, one line for each kind."""
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
    """List the image files at any depth, sorted by folder and then by name.

    Links are followed, except a link to a folder that contains it.

    Args:
        folder: The folder of one class.
        over: Receives the files that are skipped.

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
