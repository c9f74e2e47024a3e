"""The contents of run directories, for a comparison of interrupted runs with uninterrupted ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastlocal.checkpoint.resharding import read_saved
from fastlocal.checkpoint.run_directory import LAUNCH_NAME
from fastlocal.checkpoint.state_file import State, read_metadata


def run_files(directory: Path) -> dict[str, Any]:
    """Read everything in a run directory that must not depend on interruptions, tensors bit for bit.

    config.json holds the directory and the launch file its launcher; which earlier states exist, and the names of their
    parts, depends on when they were saved. These are left out.
    """
    contents: dict[str, Any] = {}
    for path in sorted(directory.iterdir()):
        if path.name == "resume.pt":
            ranks = len(read_metadata(path).get("parts", [0]))
            contents[path.name] = [_state_bits(read_saved(path, rank, ranks)) for rank in range(ranks)]
        elif path.suffix == ".part":
            continue
        elif path.suffix == ".pt":
            if not path.name.startswith("resume."):
                contents[path.name] = _bits(torch.load(path, weights_only=True))
        elif path.name not in ("config.json", LAUNCH_NAME):
            contents[path.name] = path.read_bytes()
    return contents


def difference(contents: dict[str, Any], expected: dict[str, Any]) -> str:
    """Return a message with the names of the files that differ, or an empty string."""
    names = sorted(name for name in {*contents, *expected} if contents.get(name) != expected.get(name))
    return f"differ: {', '.join(names)}" if names else ""


def _state_bits(state: State) -> tuple[str, dict[str, Any]]:
    return repr({name: value for name, value in state.metadata.items() if name != "config"}), _bits(state.tensors)


def _bits(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: (value.dtype, value.shape, value.numpy().tobytes()) for name, value in tensors.items()}
