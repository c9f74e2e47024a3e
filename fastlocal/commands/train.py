"""fastlocal train: run a recipe with flags."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ..common.errors import NonFiniteLoss, StoppedUnsaved, UsageError
from ..common.interrupts import deadline, defer_signals
from ..config.schema import RunConfig
from ..config.validation import check
from ..distributed.ranks import LaunchInfo
from .flags import TrainFlags, parse

if TYPE_CHECKING:
    from ..distributed.world import World
    from ..runs.build import PreparedRun
    from ..training.loop import Loop

NO_MEMORY, NOT_FINITE, STOPPED = 1, 3, 75


def run(argv: Sequence[str]) -> int:
    """Parse, check, build, train; return the exit status."""
    return start(parse(argv), _finish)


def start(flags: TrainFlags, finish: Callable[[PreparedRun, Loop], None], *, eval_every: int | None = None) -> int:
    """Check, build, train, and call `finish` after the run; return the exit status.

    Args:
        flags: Parsed flags.
        finish: Called with the finished run on rank 0.
        eval_every: Rounds between evaluations for the shares of a profile, if they differ from the run's.
    """
    config, ranks = flags.run, LaunchInfo.from_environment()
    check(config)
    _check_restarts(config, ranks)
    if ranks.size > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # no C++ stack traces if a rank is missing
    if config.log.profile:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read by the import of torch; silences it on stderr

    with defer_signals():
        from ..distributed.world import connect
        from ..runs.resolve import resolve_device

    machine = config.machine
    device = resolve_device(machine.device, ranks)
    with connect(ranks, url=machine.dist_url, timeout=machine.timeout, device=device) as world:
        with ExitStack() as stack:
            return _start(flags, world, finish, eval_every, stack)


def _check_restarts(config: RunConfig, ranks: LaunchInfo) -> None:
    if ranks.max_restarts and config.log.log_pth is None:
        raise UsageError("--max-restarts: needs --log-pth RUN, so that a run that is started again finds itself")


def _start(
    flags: TrainFlags,
    world: World,
    finish: Callable[[PreparedRun, Loop], None],
    eval_every: int | None,
    stack: ExitStack,
) -> int:
    with defer_signals():
        import torch

        from ..checkpoint.restore import with_stored_settings
        from ..checkpoint.run_directory import belongs_to_launch, check_directory
        from ..runs.from_config import run_from_config
        from ..runs.population import PARTITION_FILE
        from ..runs.run import train
        from ..telemetry.loggers import make_loggers

    config, stored = flags.run, None
    again = flags.continue_
    if config.log.log_pth is not None and not flags.dry_run:
        log_path = Path(config.log.log_pth).expanduser().absolute()
        if world.is_rank0:
            # a restarted launch continues its own run, whatever the flags say, and no other run
            again = again or (world.restarted and belongs_to_launch(world.launch_ids, log_path))
            check_directory(log_path, flags.overwrite or again)
        again = world.all_gather_object(again, "the run directory")[0]
        if again:
            config = with_stored_settings(config, log_path, fill_in=flags.config is None)
            stored = log_path / PARTITION_FILE
    prepared = run_from_config(
        config,
        lambda text: print(text, file=sys.stderr),
        dry_run=flags.dry_run,
        world=world,
        stored_partition=stored,
    )
    stack.callback(prepared.close)
    if flags.dry_run:
        from .plan import plan_text

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
                make_loggers=partial(make_loggers, config.log, config.name, console=True),
                resume=again,
                eval_every=eval_every,
            )
    except StoppedUnsaved as alone:
        _leave(directory, f": {alone}")
    except torch.OutOfMemoryError:
        remedy = "lower --batch-size, --chunk or --memory-limit"
        text = f"{config.machine.device} has no memory left; {remedy}; {_last_files(directory)}"
        print(f"fastlocal: stopped: {text}", file=sys.stderr)
        return NO_MEMORY
    except NonFiniteLoss as error:
        if world.is_rank0:
            print(f"fastlocal: stopped: {error}; {_last_files(directory)}", file=sys.stderr)
        return NOT_FINITE
    except KeyboardInterrupt:
        world.ask_to_stop()  # a signal after the last round reached this rank alone
        if world.is_rank0:
            print(f"fastlocal: stopped by a signal; {_last_files(directory)}", file=sys.stderr)
        return STOPPED
    world.all_gather_object(None, "the end")  # all ranks have written their files
    if world.is_rank0:
        finish(prepared, loop)
    return 0


def _leave(directory: Path, detail: str = " in time") -> NoReturn:
    """End the process at once; the files on the disk are intact at every moment."""
    print(
        f"fastlocal: stopped by a signal, without saving{detail}; {_last_files(directory)}", file=sys.stderr, flush=True
    )
    os._exit(STOPPED)


def _last_files(directory: Path) -> str:
    if (directory / "resume.pt").exists():
        return f"`fastlocal train --config {directory / 'config.json'} --continue` goes on"
    latest = directory / "latest.pt"
    return f"the last model is {latest}" if latest.exists() else f"no model was written to {directory}"


def _finish(prepared: PreparedRun, loop: Loop) -> None:
    from ..telemetry.console import summary_table

    print(summary_table(loop.history) if loop.history else "Nothing was evaluated.")
    print_files(prepared, loop)


def print_files(prepared: PreparedRun, loop: Loop) -> None:
    """List the files of the run directory."""
    print(f"{prepared.config.clients} clients, {loop.comm_round} communication rounds. Written:")
    for path in sorted(loop.directory.glob("[!.]*")):
        print(f"  {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
