"""fastlocal profile: profile a few rounds of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .flags import parse
from .train import print_files, start

if TYPE_CHECKING:
    from ..runs.build import PreparedRun
    from ..training.loop import Loop


def run(argv: Sequence[str]) -> int:
    """Train one round and --profile-rounds more, each with an evaluation, and print the tables of times."""
    flags = parse(argv, "fastlocal profile")
    schedule, rounds = flags.run.schedule, 1 + flags.run.log.profile_rounds
    config = flags.run.with_values(
        profile=True,
        rounds=rounds if schedule.rounds is None else min(rounds, schedule.rounds),
        lr_schedule="constant" if schedule.sync == "qsr" else schedule.lr_schedule,  # a run of few rounds has no length
        eval_freq1=1,
        eval_freq2=1,
        eval_freq3=1,
    )
    return start(dataclasses.replace(flags, run=config), _finish, eval_every=schedule.eval_freq1)


def _finish(prepared: PreparedRun, loop: Loop) -> None:
    from ..runs.fusions import fusions, table

    for path in sorted(loop.directory.glob("profile_rank*.txt")):
        print(path.read_text(encoding="utf-8"))
    print(table(fusions(prepared.config, prepared.problem)), end="\n\n")
    print_files(prepared, loop)
    print("Traces open in ui.perfetto.dev and chrome://tracing.")
