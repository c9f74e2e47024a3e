"""Continuing a run: choice of the saved state, and the flags that may differ from the stored ones."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..common.errors import UsageError
from ..config.schema import AREA_OF, AREAS, RunConfig
from ..config.serialization import config_from_json, read_config
from ..distributed.world import World
from ..schedule.cursor import TrainingCursor
from ..schedule.owned_rounds import make_progress
from ..schedule.rate_schedules import rate_factor
from ..schedule.rounds import Progress
from .file_names import RESUME_NAME, saved_paths
from .resharding import read_saved
from .state_file import DamagedState, State, stored_digest

CHANGEABLE = {
    *("epochs", "rounds", "stop_at", "data_pth", "train_pth", "val_pth", "nw", "source", "prefetch"),
    *(name for name, area in AREA_OF.items() if area in ("machine", "log")),
} - {"precision", "seed", "wire_format", "reduce_order"}
"""Fields that do not affect the training so far: the end of the run, paths, and how it is computed."""
PATHS = ("resume_pth",)
FILES = ("partition", "cohort_sampling", "client_weights", "lr_schedule")
"""Fields that hold a name or a path."""


def find_state(directory: Path, message: Callable[[str], None], world: World) -> State | None:
    """Return this rank's part of the newest state that is intact on every rank, or None if there is no state.

    If a newer state is damaged, `message` is called with a log line that names it, and all ranks take the one before.

    Raises:
        UsageError: No state is intact.
    """
    damaged: list[str] = []
    names = [path.name for path in saved_paths(directory)]
    for name in world.all_gather_object(names, "what was saved")[0]:
        state, result = _read(directory / name, world)
        problems = _problems(world.all_gather_object(result, f"reading {name}"), directory / name)
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
    """Return the state, and the list of its checksum and this rank's problem, if any."""
    try:
        return read_saved(path, world.rank, world.size), [stored_digest(path)]
    except DamagedState as error:
        return None, ["", str(error)]


def _problems(found: list[list[str]], path: Path) -> list[str]:
    """Return the problems of all ranks with the state in `path`."""
    problems = [problem for _, *rest in found for problem in rest]
    others = [rank for rank, (digest, *_) in enumerate(found) if digest != found[0][0]]
    if not problems and others:
        problems = [f"{path} is another one for rank {others[0]}, whose folder is not that of rank 0"]
    return problems


def with_stored_settings(config: RunConfig, directory: Path, *, fill_in: bool) -> RunConfig:
    """Return `config`, not resolved yet, for a run that continues in `directory`; unchanged if there is no state.

    Args:
        config: The settings.
        directory: Run directory.
        fill_in: Take open settings from the run's config.json, so that they are not resolved differently.

    Raises:
        UsageError: A flag would change the training so far.
    """
    if not saved_paths(directory) or not (directory / "config.json").exists():
        return config
    try:
        stored = read_config(directory / "config.json")
    except ValueError as error:
        raise UsageError(f"--continue: {directory / 'config.json'} is not that of a run ({error})") from error
    if fill_in:
        config = _fill_in(config, stored)
    refuse_changes(config, dataclasses.asdict(stored))
    return config


def _fill_in(config: RunConfig, stored: RunConfig) -> RunConfig:
    other_device = config.machine.device not in (None, stored.machine.device)
    values = {
        name: stored.value(name)
        for name, area in AREA_OF.items()
        if config.value(name) in (None, "auto")
        and area != "log"
        and name not in ("rounds", "stop_at", "start_lr", "lr", "client_lr")
        and not (other_device and name in CHANGEABLE)
    }
    return config.with_values(**values)


def check_state(state: State, config: RunConfig, progress: Progress, shapes: dict[str, torch.Size]) -> None:
    """Raise UsageError if a run of the resolved `config` cannot continue from `state`.

    Args:
        state: The saved state.
        config: The settings.
        progress: The schedule of `config`.
        shapes: Shapes of the averaged row and of the model's buffers, by their names in a state.
    """
    refuse_changes(config, state.metadata["config"])
    _refuse_other_rates(config, state.metadata["config"]["schedule"]["rounds"])
    for name in {name for name in state.tensors if name.startswith("buffer ")} | shapes.keys():
        saved = state.tensors[name].shape if name in state.tensors else None
        if saved != shapes.get(name):
            found = f"{name} is {tuple(saved) if saved else 'not there'}"
            raise UsageError(f"--continue: the run's model is another one: its {found}; give the model that it had")
    position = TrainingCursor.from_state_dict(state.metadata["position"], [])
    if not config.owned and (config.schedule.sync == "qsr" or config.schedule.lr_schedule != "constant"):
        _refuse_other_rounds(config, progress, config_from_json(state.metadata["config"]), position.first_step)
    fits = position.first_step <= progress.total_steps
    if state.metadata.get("begun") or not position.between_rounds:
        current = next(progress.rounds(position.first_step, position.rounds_before), None)
        fits = current is not None and (current.averaged, current.first_step + current.local_steps) == (
            True,
            position.round_end,
        )
    if not fits:
        flag = _length(config)
        reached = f"{position.rounds_before} rounds and {max(position.steps_done, position.first_step)} steps"
        raise UsageError(f"{flag}: the run is further already ({reached}); give more")


def _refuse_other_rates(config: RunConfig, rounds: int | None) -> None:
    """Raise UsageError if the rates of the run so far were those of another number of rounds."""
    schedule = config.schedule
    if not config.owned or rounds is None or schedule.rounds is None or schedule.rounds == rounds:
        return
    before, now = rate_factor(schedule.lr_schedule, rounds), rate_factor(schedule.lr_schedule, schedule.rounds)
    if any(before(number) != now(number) for number in range(1, min(rounds, schedule.rounds) + 1)):
        raise UsageError(
            f"--rounds {schedule.rounds}: --lr-schedule {schedule.lr_schedule} made the rates of the run for {rounds} "
            "rounds; give these, or start another run"
        )


def _refuse_other_rounds(config: RunConfig, progress: Progress, stored: RunConfig, first_step: int) -> None:
    """Raise UsageError if rounds of the run before `first_step` had other steps or rates, as its length was another."""
    if _length(config) == _length(stored):
        return
    before = make_progress(stored)
    for then, now in zip(before.rounds(), progress.rounds(), strict=False):
        if then.first_step >= first_step:
            return
        end = then.first_step + then.local_steps
        same_rate = before.learning_rate(end - 1) == progress.learning_rate(end - 1)
        if not same_rate or (then.first_step, then.local_steps) != (now.first_step, now.local_steps):
            rule = "--sync qsr" if same_rate else f"--lr-schedule {config.schedule.lr_schedule}"
            raise UsageError(
                f"{_length(config)}: {rule} made round {then.number} for a run of {_length(stored)}; give these, or "
                "start another run"
            )


def _length(config: RunConfig) -> str:
    schedule = config.schedule
    return f"--epochs {schedule.epochs}" if schedule.rounds is None else f"--rounds {schedule.rounds}"


def is_complete(state: State, progress: Progress) -> bool:
    """Return True if the state is that of a finished run."""
    return bool(state.metadata["ended"] == progress.total_steps)


def refuse_changes(config: RunConfig, stored: dict[str, Any]) -> None:
    """Raise UsageError for the first field of `config` that would change the training so far.

    Args:
        config: Resolved settings.
        stored: The state's resolved RunConfig as nested dictionaries.
    """
    changed = []
    for area, kind in AREAS.items():
        for spec in dataclasses.fields(kind):
            before, now = stored.get(area, {}).get(spec.name, spec.default), config.value(spec.name)
            if spec.name not in CHANGEABLE and _plain(spec.name, before) != _plain(spec.name, now):
                changed.append((now is None, "--" + spec.name.replace("_", "-"), before, now))
    if changed:
        _, flag, before, now = min(changed, key=lambda one: one[0])  # of two rates, the one that is set
        raise UsageError(
            f"{flag} {now}: the run was trained with {before}, and --continue cannot change that; "
            f"leave {flag} as it was, or start another run"
        )


def _plain(name: str, value: Any) -> Any:
    """Normalize a value for comparison: tuples become lists, as in JSON; paths become absolute."""
    if isinstance(value, tuple):
        return list(value)
    if name in FILES and value is not None and Path(value).expanduser().is_file():
        return os.path.abspath(Path(value).expanduser())
    return os.path.abspath(Path(value).expanduser()) if name in PATHS and value is not None else value
