"""Phases of a run, each with its number of local steps per round, H."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.training_settings import ScheduleConfig


@dataclass(frozen=True)
class Phase:
    """A range of local steps with one H.

    Attributes:
        first_step: Global local step of its begin.
        first_round: Communication rounds that ended before it.
        origin: Clients are averaged after each step t where (t + 1 - origin) is a multiple of local_steps.
        local_steps: H.
        eval_freq: Rounds between evaluations.
        save_freq: Rounds or epochs between named checkpoints.
        decays: Rate decays before it.
    """

    first_step: int
    first_round: int
    origin: int
    local_steps: int
    eval_freq: int
    save_freq: int
    decays: int


def phases(schedule: ScheduleConfig, steps_per_epoch: int, first_epoch: int) -> list[Phase]:
    """Return the phases of a run in order; late ones may begin after its end.

    Args:
        schedule: The settings.
        steps_per_epoch: Local steps per epoch.
        first_epoch: Number of the first epoch; --schedule epochs compares it with its decays.
    """
    if schedule.schedule == "epochs":
        return _by_epochs(schedule, steps_per_epoch, first_epoch)
    return _by_rounds(schedule, steps_per_epoch)


def decay_rounds(schedule: ScheduleConfig, steps_per_epoch: int) -> tuple[int, int]:
    """Return the communication rounds that end with the first and the second decay (--schedule rounds)."""
    first = schedule.decay1 * steps_per_epoch // schedule.step1
    return first, (schedule.decay2 - schedule.decay1) * steps_per_epoch // schedule.step2 + first


def _settings(schedule: ScheduleConfig, number: int) -> dict[str, int]:
    return {
        "local_steps": (schedule.step1, schedule.step2, schedule.step3)[number - 1],
        "eval_freq": (schedule.eval_freq1, schedule.eval_freq2, schedule.eval_freq3)[number - 1],
        "save_freq": (schedule.save_freq1, schedule.save_freq2, schedule.save_freq3)[number - 1],
    }


def _by_rounds(schedule: ScheduleConfig, steps_per_epoch: int) -> list[Phase]:
    """A decay ends its round and restarts the phase's counters. If both decays fall on one round, phase 3 follows."""
    first, second = decay_rounds(schedule, steps_per_epoch)
    found = [Phase(0, 0, 0, decays=0, **_settings(schedule, 1))]
    for end_round, number in sorted({first: 2, second: 3}.items()):
        if end_round < 1:
            continue
        before = found[-1]
        step = before.first_step + (end_round - before.first_round) * before.local_steps
        found.append(Phase(step, end_round, step, decays=before.decays + 1, **_settings(schedule, number)))
    return found


def _by_epochs(schedule: ScheduleConfig, steps_per_epoch: int, first_epoch: int) -> list[Phase]:
    """A decay ends its epoch, even within a round, and restarts no counter."""
    found = [Phase(0, 0, 0, decays=0, **_settings(schedule, 1))]
    number = 1
    for epoch in sorted({schedule.decay1, schedule.decay2, schedule.decay3}):
        if epoch < first_epoch:
            continue
        if epoch == schedule.decay1:
            number = 2
        if epoch == schedule.decay2:
            number = 3
        before = found[-1]
        step = (epoch - first_epoch + 1) * steps_per_epoch
        rounds = before.first_round + step // before.local_steps - before.first_step // before.local_steps
        found.append(Phase(step, rounds, 0, decays=before.decays + 1, **_settings(schedule, number)))
    return found
