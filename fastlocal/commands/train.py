"""fastlocal train: one run from a recipe and flags."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ..checks import check
from ..config import RunConfig
from ..errors import NonFiniteLoss
from .flags import parse

if TYPE_CHECKING:
    from ..loop import Loop
    from ..run import Prepared
    from ..telemetry.base import Logger

NOT_FINITE, STOPPED = 3, 75


def run(argv: Sequence[str]) -> int:
    """Parse, check, build, train; returns the exit status."""
    flags = parse(argv)
    check(flags.run)

    from ..directory import check_directory
    from ..named import prepare_named
    from ..run import train
    from ..telemetry.console import summary_table

    if flags.run.log.log_pth is not None and not flags.dry_run:
        check_directory(Path(flags.run.log.log_pth).expanduser().absolute(), flags.overwrite)
    prepared = prepare_named(flags.run, lambda text: print(text, file=sys.stderr))
    if flags.dry_run:
        from .plan_text import plan_text

        print(plan_text(prepared))
        return 0
    signal.signal(signal.SIGTERM, _interrupt)
    directory = Path(str(prepared.config.log.log_pth))
    try:
        loop = train(prepared, overwrite=flags.overwrite, sinks=lambda path: _sinks(prepared.config, path))
    except NonFiniteLoss as error:
        last = "the last evaluated model is latest.pt" if (directory / "latest.pt").exists() else "nothing was evaluated"
        print(f"fastlocal: stopped: {error}; {last} in {directory}", file=sys.stderr)
        return NOT_FINITE
    except KeyboardInterrupt:
        print(f"fastlocal: stopped by a signal; the last averaged model is {directory / 'latest.pt'}", file=sys.stderr)
        return STOPPED
    _finish(prepared, loop, summary_table(loop.history))
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _sinks(config: RunConfig, directory: Path) -> list[Logger]:
    from ..telemetry.console import ConsoleLogger

    sinks: list[Logger] = [ConsoleLogger()]
    log = config.log
    if log.tensorboard:
        from ..telemetry.tensorboard_run import TensorboardLogger

        sinks.append(TensorboardLogger(directory))
    if log.wandb != "disabled":
        from ..telemetry.wandb_run import WandbLogger

        name = f"{config.name}_{directory.name}"
        sinks.append(WandbLogger(log.wandb, log.wandb_entity, log.wandb_project, name, directory, log.wandb_save))
    return sinks


def _finish(prepared: Prepared, loop: Loop, table: str) -> None:
    print(table)
    print(f"{prepared.config.clients} clients, {loop.comm_round} communication rounds. Written:")
    for path in sorted(loop.directory.iterdir()):
        print(f"  {path}")
