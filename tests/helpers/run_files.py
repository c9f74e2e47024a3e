"""The contents of run directories, for a comparison of interrupted runs with uninterrupted ones."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastlocal.checkpoint.resharding import read_saved
from fastlocal.checkpoint.run_directory import LAUNCH_NAME
from fastlocal.checkpoint.state_file import State, read_metadata
from fastlocal.params.disk_store import FOLDER_NAME, IDENTITY_NAME, OWN, go_back


def run_files(directory: Path) -> dict[str, Any]:
    """Read everything in a run directory that must not depend on interruptions, tensors bit for bit.

    config.json holds the directory and the launch file its launcher; which earlier states exist, and the names of their
    parts, depends on when they were saved. These are left out.
    """
    contents: dict[str, Any] = {}
    for path in sorted(directory.iterdir()):
        if path.name == "resume.pt":
            ranks = len(read_metadata(path).get("parts", [0]))
            states = [read_saved(path, rank, ranks) for rank in range(ranks)]
            contents[path.name] = [_state_bits(state) for state in states]
            if "client_store" in states[0].metadata:
                contents[FOLDER_NAME] = _client_rows(directory / FOLDER_NAME, states)
        elif path.name == FOLDER_NAME:
            continue
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
    # the number of epochs, and what tells a store from another, depend on how often the run was begun
    kept = {name: value for name, value in state.metadata.items() if name not in ("config", "client_store")}
    return repr(kept), _bits(state.tensors)


def _client_rows(folder: Path, states: list[State]) -> dict[str, dict[int, bytes]]:
    """Return the rows in files that count in a state, by file and client."""
    with tempfile.TemporaryDirectory() as other:
        copy = Path(shutil.copytree(folder, Path(other) / FOLDER_NAME))
        go_back(copy, states[0].metadata["client_store"])
        sizes = json.loads((copy / IDENTITY_NAME).read_text())["row_bytes"]
        found: dict[str, dict[int, bytes]] = {file: {} for file in sizes}
        for state in states:
            own = [value for name, value in state.tensors.items() if name.startswith("of clients status of ")]
            for (file, size), status in zip(sizes.items(), own, strict=True):
                content = (copy / file).read_bytes() if (copy / file).exists() else b""
                for row in (status == OWN).nonzero()[:, 0].tolist():
                    client = state.metadata["clients"][0] + row
                    found[file][client] = content[client * size : (client + 1) * size]
                    assert len(found[file][client]) == size
    return found


def _bits(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: (value.dtype, value.shape, value.numpy().tobytes()) for name, value in tensors.items()}
