"""What was found out about this machine, kept in a file of the user's cache."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

MOST = 1000
"""Entries that are kept, the latest."""


def cache_file(name: str) -> Path:
    """NAME in $XDG_CACHE_HOME/fastlocal, or in ~/.cache/fastlocal."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path("~/.cache").expanduser()) / "fastlocal" / name


def recall(path: Path, key: str) -> Any:
    """What was kept under `key`, or None; a file that cannot be read holds nothing."""
    return _entries(path).get(key)


def keep(path: Path, key: str, value: Any) -> None:
    """Keep a value that JSON can hold. Where nothing can be written nothing is kept.

    The file is replaced as a whole: of two processes that write at once one may lose its entry, and none reads half of
    one.
    """
    entries = _entries(path)
    entries.pop(key, None)
    entries[key] = value
    text = json.dumps(dict(list(entries.items())[-MOST:]), indent=1)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        number, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


def _entries(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
