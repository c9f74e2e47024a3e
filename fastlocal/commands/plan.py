"""fastlocal plan: how much memory a run is going to take."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..checks import check
from ..interrupts import held_back
from .flags import parse


def run(argv: Sequence[str]) -> int:
    """Print the bytes of each part at the peak, and the largest chunk that fits --memory-limit."""
    flags = parse(argv, "fastlocal plan")
    check(flags.run)

    with held_back():
        from ..named import prepare_named

    prepared = prepare_named(flags.run, lambda text: print(text, file=sys.stderr), dry_run=True)
    config = prepared.config
    print(
        f"{config.clients} clients of {config.model.model} ({prepared.layout.n_params:,} parameters), batch "
        f"{config.client.batch_size}, {config.machine.precision}, {config.machine.executor} on {config.machine.device}"
    )
    print(prepared.memory.table())
    for note in prepared.notes:
        print(note)
    return 0
