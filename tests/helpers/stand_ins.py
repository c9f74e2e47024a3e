"""Modules of fastlocal replaced in the processes that a test starts, by code that is wrong, raises or hangs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HOOK = """
import importlib.util, sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        file = {files}.get(name)
        return None if file is None else importlib.util.spec_from_file_location(name, file)

sys.meta_path.insert(0, Finder)
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, **sources: str) -> None:
    """Have processes that are started from now on find these instead.

    Args:
        folder: For the files.
        monkeypatch: Undoes it.
        sources: Text by module, named from fastlocal on, with `__` for its dots.
    """
    files = {}
    for name, text in sources.items():
        path = folder / f"{name}.py"
        path.write_text(text)
        files[f"fastlocal.{name.replace('__', '.')}"] = str(path)
    (folder / "sitecustomize.py").write_text(HOOK.format(files=files))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")])))
