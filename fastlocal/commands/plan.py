"""fastlocal plan: the memory of a run before its start."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from ..common.interrupts import defer_signals
from ..config.validation import check
from ..distributed.ranks import LaunchInfo
from .flags import parse

if TYPE_CHECKING:
    from ..runs.build import PreparedRun


def run(argv: Sequence[str]) -> int:
    """Print the bytes of each part at the peak, and the largest chunk that fits --memory-limit."""
    flags, ranks = parse(argv, "fastlocal plan"), LaunchInfo.from_environment()
    check(flags.run)

    with defer_signals():
        from ..distributed.world import connect
        from ..runs.from_config import run_from_config
        from ..runs.resolve import resolve_device

    machine = flags.run.machine
    device = resolve_device(machine.device, ranks)
    with connect(ranks, url=machine.dist_url, timeout=machine.timeout, device=device) as world:
        prepared = run_from_config(flags.run, lambda text: print(text, file=sys.stderr), dry_run=True, world=world)
        with closing(prepared):
            if world.is_rank0:
                _print(prepared)
    return 0


def _print(prepared: PreparedRun) -> None:
    config = prepared.config
    print(
        f"{config.clients} clients of {config.model.model} ({prepared.layout.n_params:,} parameters), batch "
        f"{config.client.batch_size}, {config.machine.precision}, {config.machine.executor} on {config.machine.device}"
    )
    print(prepared.memory.table())
    for note in prepared.notes:
        print(note)
