"""The directory of a sweep and its sweep.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..checkpoint.lock import hold_lock
from ..common.atomic_file import write_atomically
from ..common.errors import UsageError
from .plan import SweepRun, swept_fields

SWEEP_FILE = "sweep.json"
VERSION = 1
Status = Literal["waiting", "running", "done", "stopped early", "failed"]
ENDED: tuple[Status, ...] = ("done", "stopped early", "failed")


@dataclass
class RunState:
    """State of a run in sweep.json.

    Attributes:
        name: Name of its directory.
        values: Values of the swept fields.
        status: How far it is.
        message: Why it failed or was stopped, or None.
    """

    name: str
    values: dict[str, Any]
    status: Status = "waiting"
    message: str | None = None


class SweepDirectory:
    """sweep.json: what was asked, and the state of every run. Only rank 0 writes it.

    Attributes:
        path: The directory.
        states: State of every run by name.
        decided: Last round after which runs were chosen, or 0.
        begun: Whether `begin` was called; before, nothing is written.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        command: Sequence[str],
        runs: Sequence[SweepRun],
        *,
        writes: bool,
        overwrite: bool = False,
    ) -> None:
        """Take the states of an existing sweep.json of the same runs, or start with new ones.

        Args:
            path: The directory.
            name: Name of the recipe.
            command: Words of the command line, with which the sweep can be continued.
            runs: The runs.
            writes: Whether this process writes the file.
            overwrite: Whether to start with new states in any case.
        """
        self.path = path
        self.decided = 0
        self._writes = writes
        self._head = {"version": VERSION, "name": name, "command": list(command), "fields": swept_fields(runs)}
        self.states = {run.name: RunState(run.name, dict(run.values)) for run in runs}
        stored = read_sweep(path) if (path / SWEEP_FILE).exists() and not overwrite else {"runs": []}
        for state in stored["runs"]:
            if state["name"] in self.states and state["status"] in ENDED:
                self.states[state["name"]] = RunState(**state)
        self.decided = stored.get("decided", 0)
        self.begun = False
        self._resources = ExitStack()

    def begin(self) -> None:
        """Make the directory, lock it against other sweeps, and write sweep.json."""
        if self._writes:
            self.path.mkdir(parents=True, exist_ok=True)
            self._resources.enter_context(hold_lock(self.path))
        self.begun = True
        self.write()

    def close(self) -> None:
        """Unlock the directory."""
        self._resources.close()

    def stop_early(self, messages: Mapping[str, str], decided: int) -> None:
        """Note the runs that do not go on after a round, all at once.

        Args:
            messages: {name of a run: why it stops}.
            decided: Number of the round.
        """
        for name, message in messages.items():
            self.states[name].status, self.states[name].message = "stopped early", message
        self.decided = decided
        self.write()

    def set_status(self, run: SweepRun, status: Status, message: str | None = None) -> None:
        """Note how far a run is, and write the file."""
        state = self.states[run.name]
        if (state.status, state.message) != (status, message):
            state.status, state.message = status, message
            self.write()

    def write(self) -> None:
        """Write sweep.json."""
        if self._writes:
            decided = {"decided": self.decided} if self.decided else {}
            content = self._head | decided | {"runs": [dataclasses.asdict(state) for state in self.states.values()]}
            text = json.dumps(content, indent=1) + "\n"
            write_atomically(self.path / SWEEP_FILE, lambda file: file.write(text.encode()))


def read_sweep(path: Path) -> dict[str, Any]:
    """Read the sweep.json of a directory; raises UsageError if it is not one."""
    try:
        content = json.loads((path / SWEEP_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"{path / SWEEP_FILE}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or content.get("version") != VERSION or "runs" not in content:
        raise UsageError(f"{path / SWEEP_FILE}: is not that of a sweep")
    return content
