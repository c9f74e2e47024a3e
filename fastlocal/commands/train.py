"""fastlocal train: one run from a recipe and flags."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..common.errors import NonFiniteLoss, StoppedAlone, UsageError
from ..common.interrupts import deadline, defer_signals
from ..config.schema import RunConfig
from ..config.validation import check
from ..distributed.ranks import LaunchInfo, launched
from .flags import TrainFlags, parse

if TYPE_CHECKING:
    from ..distributed.world import World
    from ..runs.build import PreparedRun
    from ..training.loop import Loop

NO_MEMORY, NOT_FINITE, STOPPED = 1, 3, 75


def run(argv: Sequence[str]) -> int:
    """Parse, check, build, train; returns the exit status."""
    return start(parse(argv), _finish)


def start(flags: TrainFlags, finish: Callable[[PreparedRun, Loop], None], *, eval_every: int | None = None) -> int:
    """Check, build, train, and hand the finished run to `finish`; returns the exit status.

    eval_every: rounds between evaluations that a profile reckons with, where they are not those of the run
    """
    config, ranks = flags.run, launched()
    check(config)
    _check_restarts(config, ranks)
    if ranks.size > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # C++ frames where a rank is gone, as to which we say it
    if config.log.profile:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read as torch is imported; else it talks on stderr

    with defer_signals():
        from ..distributed.world import connected
        from ..runs.resolve import resolve_device

    machine = config.machine
    device = resolve_device(machine.device, ranks)
    with connected(ranks, url=machine.dist_url, timeout=machine.timeout, device=device) as world:
        with ExitStack() as opened:
            return _start(flags, world, finish, eval_every, opened)


def _check_restarts(config: RunConfig, ranks: LaunchInfo) -> None:
    if ranks.restarts and config.log.log_pth is None:
        raise UsageError("--max-restarts: needs --log-pth RUN, so that a run that is started again finds itself")


def _start(
    flags: TrainFlags,
    world: World,
    finish: Callable[[PreparedRun, Loop], None],
    eval_every: int | None,
    opened: ExitStack,
) -> int:
    with defer_signals():
        import torch

        from ..checkpoint.restore import with_stored_settings
        from ..checkpoint.run_directory import check_directory, is_begun_by
        from ..runs.from_config import run_from_config
        from ..runs.run import train
        from ..telemetry.loggers import sinks

    config = flags.run
    again = flags.continue_
    if config.log.log_pth is not None and not flags.dry_run:
        given = Path(config.log.log_pth).expanduser().absolute()
        if world.is_rank0:
            # what a launcher starts again goes on, whatever it was told to begin with, but with no other run
            again = again or (world.restarted and is_begun_by(world.launches, given))
            check_directory(given, flags.overwrite or again)
        again = world.all_gather_object(again, "the run directory")[0]
        if again:
            config = with_stored_settings(config, given, fill_in=flags.config is None)
    prepared = run_from_config(config, lambda text: print(text, file=sys.stderr), dry_run=flags.dry_run, world=world)
    opened.callback(prepared.close)
    if flags.dry_run:
        from .plan_text import plan_text

        if world.is_rank0:
            print(plan_text(prepared))
        return 0
    config = prepared.config
    directory = Path(str(config.log.log_pth))
    try:
        with deadline(config.log.grace, partial(_leave, directory)):
            loop = train(
                prepared,
                overwrite=flags.overwrite and not again,
                sinks=partial(sinks, config.log, config.name, console=True),
                resume=again,
                eval_every=eval_every,
            )
    except StoppedAlone as alone:
        _leave(directory, f": {alone}")
    except torch.OutOfMemoryError:
        mend = "lower --batch-size, --chunk or --memory-limit"
        said = f"{config.machine.device} has no memory left; {mend}; {_reached(directory)}"
        print(f"fastlocal: stopped: {said}", file=sys.stderr)
        return NO_MEMORY
    except NonFiniteLoss as error:
        if world.is_rank0:
            print(f"fastlocal: stopped: {error}; {_reached(directory)}", file=sys.stderr)
        return NOT_FINITE
    except KeyboardInterrupt:
        world.ask_to_stop()  # one that came as the rounds were over is this rank's alone
        if world.is_rank0:
            print(f"fastlocal: stopped by a signal; {_reached(directory)}", file=sys.stderr)
        return STOPPED
    world.all_gather_object(None, "the end")  # the files of all ranks are there
    if world.is_rank0:
        finish(prepared, loop)
    return 0


def _leave(directory: Path, why: str = " in time") -> NoReturn:
    """End the process where it stands: what is on the disk is whole at every moment."""
    print(f"fastlocal: stopped by a signal, without saving{why}; {_reached(directory)}", file=sys.stderr, flush=True)
    os._exit(STOPPED)


def _reached(directory: Path) -> str:
    if (directory / "resume.pt").exists():
        return f"`fastlocal train --config {directory / 'config.json'} --continue` goes on"
    latest = directory / "latest.pt"
    return f"the last model is {latest}" if latest.exists() else f"no model was written to {directory}"


def _finish(prepared: PreparedRun, loop: Loop) -> None:
    from ..telemetry.console import summary_table

    print(summary_table(loop.history) if loop.history else "Nothing was evaluated.")
    written(prepared, loop)


def written(prepared: PreparedRun, loop: Loop) -> None:
    """Say what is in the run directory."""
    print(f"{prepared.config.clients} clients, {loop.comm_round} communication rounds. Written:")
    for path in sorted(loop.directory.glob("[!.]*")):
        print(f"  {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
