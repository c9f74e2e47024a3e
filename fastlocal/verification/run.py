"""Verification of a run, built in float64 and in its own precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import torch

from ..config.schema import RunConfig
from ..params.precision import preserve_torch_flags
from ..runs.build import PreparedRun
from .checks import Check, Verification
from .modules import ModuleCase
from .proof import prove


def verify_run(
    config: RunConfig,
    device: torch.device,
    prepare: Callable[[RunConfig], PreparedRun],
    *,
    ops: Sequence[str] | None,
    seconds: float,
    say: Callable[[str], None],
) -> Verification:
    """Check a run before its start.

    Args:
        config: Settings of the run.
        device: Device of the run.
        prepare: Builds a run from settings.
        ops: Ops to check; None: all ops of the device.
        seconds: Time limit of each case of an op.
        say: Called with each line of the table.
    """
    # the checks make their own executors

    plain = config.with_values(executor="looped", conv_strategy="auto", compile=None, cuda_graph=None, tune_seconds=0.0)

    @contextmanager
    def make(precision: str | None) -> Iterator[ModuleCase]:
        with closing(prepare(plain if precision is None else plain.with_values(precision=precision))) as prepared:
            own = prepared.config
            yield ModuleCase(
                precision=str(own.machine.precision),
                problem=prepared.problem,
                clients=own.clients,
                batch=own.client.batch_size,
                rate=prepared.progress.learning_rate(0) or 0.01,
                random=prepared.uses_rng,
                no_vmap=prepared.no_vmap,
                conv_strategy=config.machine.conv_strategy,
            )

    checks: list[Check] = []
    with preserve_torch_flags():
        for check in prove(device, make, ops=ops, seconds=seconds):
            checks.append(check)
            say(str(check))
    verification = Verification(tuple(checks))
    say(verification.summary())
    return verification
