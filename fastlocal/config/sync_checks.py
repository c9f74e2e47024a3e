"""Checks of --sync and --lr-schedule, and of settings that mean nothing beside others.

Each message is one line that names the flag.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from ..common.errors import UsageError
from .optimizer_checks import ADAMW
from .schema import RunConfig


def sync_problems(config: RunConfig) -> Iterator[str]:
    """Yield what is wrong with --sync and its settings."""
    schedule = config.schedule
    alpha = schedule.qsr_alpha
    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        yield f"--qsr-alpha {alpha}: must be a finite number above 0"
    if config.owned and schedule.post_local_from:
        yield f"--post-local-from {schedule.post_local_from}: counts in epochs; is for --partition shared"
    if schedule.sync != "qsr":
        return
    if config.owned:
        yield f"--sync qsr: is for --partition shared; with --partition {config.client.partition} H is --step1"
    if alpha is None:
        yield "--sync qsr: needs its coefficient; give --qsr-alpha, 0.0175 say"
    if schedule.rounds is not None and schedule.lr_schedule != "constant":
        yield (
            f"--lr-schedule {schedule.lr_schedule}: with --sync qsr the rate decides how many steps --rounds take, and "
            "follows from them; give --epochs instead"
        )


def refuse_unused(names: Collection[str], config: RunConfig) -> None:
    """Raise UsageError if one of the settings `names` means nothing beside another one; a sweep may vary the other."""
    schedule = config.schedule
    sync, rate = f"--sync {schedule.sync}", f"--lr-schedule {schedule.lr_schedule}"
    reasons: dict[str, str] = {}
    if schedule.sync == "qsr":
        reasons |= dict.fromkeys(("step1", "step2", "step3"), f"with {sync} H follows from the rate; give --h-min")
    else:
        reasons |= dict.fromkeys(("qsr_alpha", "h_min"), f"is for --sync qsr, not for {sync}")
    if schedule.sync == "constant":
        reasons |= dict.fromkeys(("step2", "step3"), f"with {sync} H is --step1 in all phases")
    if schedule.lr_schedule != "constant":
        reasons["gamma"] = f"decays do not change the rate of {rate}; leave it out"
    if config.sgd.client_optimizer != "adamw":
        reasons |= dict.fromkeys(ADAMW, f"is for --client-optimizer adamw, not for {config.sgd.client_optimizer}")
    for name, reason in reasons.items():
        if name in names:
            raise UsageError(f"--{name.replace('_', '-')}: {reason}")
