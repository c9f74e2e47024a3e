"""Going on with a run: which saved state is taken, and which flags may differ from those it was trained with."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..common.errors import UsageError
from ..config.schema import AREA_OF, AREAS, RunConfig
from ..config.serialization import read_config
from ..distributed.world import World
from ..schedule.cursor import TrainingCursor
from ..schedule.rounds import Progress
from .file_names import RESUME_NAME, saved_paths
from .resharding import read_saved
from .state_file import DamagedState, State, stored_digest

FREE = {
    *("epochs", "rounds", "data_pth", "train_pth", "val_pth", "nw", "source", "prefetch"),
    *(name for name, area in AREA_OF.items() if area in ("machine", "log")),
} - {"precision", "seed", "wire_format", "reduce_order"}
"""Fields that say where a run ends, where things are and how it is computed, not what was computed so far."""
PATHS = ("resume_pth",)


def find_state(directory: Path, message: Callable[[str], None], world: World) -> State | None:
    """This rank's state of the newest that is whole on every rank, None where none was saved.

    A damaged one is named in `message`, and the one before takes its place, on all ranks alike. Raises UsageError where
    none is whole.
    """
    damaged: list[str] = []
    there = [path.name for path in saved_paths(directory)]
    for name in world.all_gather_object(there, "what was saved")[0]:
        state, found = _read(directory / name, world)
        problems = _problems(world.all_gather_object(found, f"reading {name}"), directory / name)
        if problems:
            damaged += problems[:1]
            continue
        if damaged:
            if world.rank == 0:
                message(f"{'; '.join(damaged)}; going on from {name}")
                os.replace(directory / name, directory / RESUME_NAME)
        return state
    if damaged:
        raise UsageError(f"--continue: {'; '.join(damaged)}; no state is whole, --overwrite 1 starts afresh")
    return None


def _read(path: Path, world: World) -> tuple[State | None, list[str]]:
    """The state, and what this rank has to say of it: nothing but its checksum, or what is wrong as well."""
    try:
        return read_saved(path, world.rank, world.size), [stored_digest(path)]
    except DamagedState as error:
        return None, ["", str(error)]


def _problems(found: list[list[str]], path: Path) -> list[str]:
    """What is wrong on some rank with the state in `path`."""
    problems = [problem for _, *rest in found for problem in rest]
    others = [rank for rank, (digest, *_) in enumerate(found) if digest != found[0][0]]
    if not problems and others:
        problems = [f"{path} is another one for rank {others[0]}, whose folder is not that of rank 0"]
    return problems


def with_stored_settings(config: RunConfig, directory: Path, *, fill_in: bool) -> RunConfig:
    """`config`, not resolved yet, for a run that goes on in `directory`; unchanged where nothing was saved there.

    fill_in: settle what `config` leaves open as the run's own config.json has it, so that it is not settled otherwise
    Raises UsageError for a flag that would have changed what was trained so far.
    """
    if not saved_paths(directory) or not (directory / "config.json").exists():
        return config
    try:
        stored = read_config(directory / "config.json")
    except ValueError as error:
        raise UsageError(f"--continue: {directory / 'config.json'} is not that of a run ({error})") from error
    if fill_in:
        config = _filled(config, stored)
    refuse_changes(config, dataclasses.asdict(stored))
    return config


def _filled(config: RunConfig, stored: RunConfig) -> RunConfig:
    moved = config.machine.device not in (None, stored.machine.device)
    settled = {
        name: stored.value(name)
        for name, area in AREA_OF.items()
        if config.value(name) in (None, "auto")
        and area != "log"
        and name not in ("rounds", "start_lr", "lr", "client_lr")
        and not (moved and name in FREE)
    }
    return config.with_values(**settled)


def check_state(state: State, config: RunConfig, progress: Progress, shapes: dict[str, torch.Size]) -> None:
    """Raise UsageError where a run of the resolved `config` cannot go on from `state`.

    shapes: of the averaged row and of the model's buffers, by the names that they have in a state
    """
    refuse_changes(config, state.metadata["config"])
    for name in {name for name in state.tensors if name.startswith("buffer ")} | shapes.keys():
        saved = state.tensors[name].shape if name in state.tensors else None
        if saved != shapes.get(name):
            found = f"{name} is {tuple(saved) if saved else 'not there'}"
            raise UsageError(f"--continue: the run's model is another one: its {found}; give the model that it had")
    position = TrainingCursor.from_state_dict(state.metadata["position"], [])
    fits = position.first_step <= progress.total_steps
    if state.metadata.get("begun") or not position.between_rounds:
        at_hand = next(progress.rounds(position.first_step, position.rounds_before), None)
        fits = at_hand is not None and (at_hand.averaged, at_hand.first_step + at_hand.local_steps) == (
            True,
            position.round_end,
        )
    if not fits:
        schedule = config.schedule
        given = f"--epochs {schedule.epochs}" if schedule.rounds is None else f"--rounds {schedule.rounds}"
        reached = f"{position.rounds_before} rounds and {max(position.steps_done, position.first_step)} steps"
        raise UsageError(f"{given}: the run is further already ({reached}); give more")


def is_complete(state: State, progress: Progress) -> bool:
    """Whether nothing is left to do."""
    return bool(state.metadata["ended"] == progress.total_steps)


def refuse_changes(config: RunConfig, stored: dict[str, Any]) -> None:
    """Raise UsageError for the first field of `config` that would have changed what was trained so far.

    config: resolved        stored: the resolved RunConfig of the state, as nested plain dictionaries
    """
    changed = []
    for area, kind in AREAS.items():
        for spec in dataclasses.fields(kind):
            before, given = stored[area].get(spec.name, spec.default), config.value(spec.name)
            if spec.name not in FREE and _plain(spec.name, before) != _plain(spec.name, given):
                changed.append((given is None, "--" + spec.name.replace("_", "-"), before, given))
    if changed:
        _, flag, before, given = min(changed, key=lambda one: one[0])  # of two rates, the one that was given
        raise UsageError(
            f"{flag} {given}: the run was trained with {before}, and --continue cannot change that; "
            f"leave {flag} as it was, or start another run"
        )


def _plain(name: str, value: Any) -> Any:
    """As values are compared: tuples as JSON gives them back, paths absolute."""
    if isinstance(value, tuple):
        return list(value)
    return os.path.abspath(Path(value).expanduser()) if name in PATHS and value is not None else value
