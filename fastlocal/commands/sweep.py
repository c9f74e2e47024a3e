"""fastlocal sweep: train the runs of a grid of settings as replicas of one job."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.errors import StoppedUnsaved, UsageError
from ..common.interrupts import deadline, defer_signals
from ..config.schema import RunConfig
from ..config.validation import check
from ..distributed.ranks import LaunchInfo
from ..sweeps.axes import Axis, Values, grid, parse_axis, read_runs
from ..sweeps.directory import SWEEP_FILE, SweepDirectory, read_sweep
from ..sweeps.halving import Halving, refuse_metric
from ..sweeps.plan import SweepRun, make_runs, swept_fields
from .argv import is_flag
from .flags import TrainFlags, read_flags, resolve
from .train import NO_MEMORY, STOPPED

if TYPE_CHECKING:
    from ..distributed.world import World

HELP = """\
usage: fastlocal sweep [RECIPE] --over FIELD=VALUES ... [--flag value ...]

Trains a run for every combination of the values, each in its own directory below --log-pth, as
many at once as fit; runs of one model, batch size and H train as one program. RECIPE and flags
are those of `fastlocal train`, and hold for all runs.

  --over FIELD=VALUES ...   a field and its values: 0.1,0.2 or 0..4, 1..64*4, 0..1+0.25, 0..1/5
                            (begin..end, times a factor, plus a step, or a number of values)
  --zip FIELD=VALUES ...    fields whose values move together, one dimension of the grid
  --runs FILE               values of each run: a .csv with fields as its head, or a JSON list
  --halving ROUND           after ROUND, 2 ROUND, 4 ROUND ... the worse half of the settings stops
  --metric NAME             what --halving compares, the mean over seeds [val_acc1]
  --log-pth DIR             directory of the sweep [runs/sweep_NAME_TIME]
  --continue                go on with the sweep of --log-pth, with the settings it began with
  --overwrite               start afresh in a --log-pth that holds a sweep
  --dry-run                 print the runs and stop
  --yes                     train 1,000 runs or more

fastlocal sweep quickstart --over seed=0..4 --over client_lr=0.05,0.1,0.2"""


@dataclass
class SweepWords:
    """The words of a command line: those of the sweep, and those of its runs.

    Attributes:
        rest: Words of `fastlocal train`.
    """

    axes: list[Axis] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    directory: Path | None = None
    halving: int | None = None
    metric: str = "val_acc1"
    go_on: bool = False
    overwrite: bool = False
    dry_run: bool = False
    yes: bool = False
    rest: list[str] = field(default_factory=list)


def run(argv: Sequence[str]) -> int:
    """Parse, plan, train, write the tables; return the exit status."""
    words = parse_words(argv)
    if words.go_on:
        words, argv = _stored_words(words)
    refuse_metric(words.metric)
    flags, names = read_flags(words.rest, "fastlocal sweep")
    values = grid(words.axes) if words.axes else [{}]
    for path in words.files:
        values = [before | own for before in values for own in read_runs(path)]
    directory = words.directory or _default_directory(flags.run.name)
    runs = make_runs(directory, [one for one in values if one], partial(_config, flags, names), yes=words.yes)
    if words.dry_run:
        print(_plan(runs))
        return 0
    if (directory / "config.json").exists():
        raise UsageError(f"--log-pth {directory}: holds a run; name another directory for the sweep")
    if (directory / SWEEP_FILE).exists() and not (words.go_on or words.overwrite):
        raise UsageError(f"--log-pth {directory}: holds a sweep already; --continue goes on, --overwrite starts afresh")
    return _start(words, flags, runs, directory, argv)


def parse_words(argv: Sequence[str]) -> SweepWords:
    """Split the words of a command line; raises UsageError for a wrong one, and SystemExit after --help."""
    found = SweepWords()
    words = [part for word in argv for part in _split(word)]
    place = 0
    while place < len(words):
        word = words[place]
        end = next((after for after in range(place + 1, len(words)) if is_flag(words[after])), len(words))
        given = words[place + 1 : end]
        if word in ("-h", "--help"):
            print(HELP)
            raise SystemExit(0)
        if word in ("--over", "--zip"):
            if not given:
                raise UsageError(f"{word}: needs FIELD=VALUES, as in {word} seed=0..4")
            found.axes += [parse_axis(given, word)] if word == "--zip" else [parse_axis([one], word) for one in given]
        elif word in ("--runs", "--log-pth", "--halving", "--metric"):
            if len(given) != 1:
                raise UsageError(f"{word}: needs one value")
            _take(found, word, given[0])
        elif word in ("--continue", "--overwrite", "--dry-run", "--yes"):
            if given not in ([], ["1"], ["0"]):
                raise UsageError(f"{word} {' '.join(given)}: is 0 or 1")
            setattr(found, {"--continue": "go_on"}.get(word, word[2:].replace("-", "_")), given != ["0"])
        else:
            found.rest += [word, *given]
        place = end
    if found.go_on and found.overwrite:
        raise UsageError("--continue and --overwrite: give one of them")
    return found


def _split(word: str) -> list[str]:
    name, equals, value = word.partition("=")
    if not word.startswith("--"):
        return [word]
    return [name.replace("_", "-"), value] if equals else [name.replace("_", "-")]


def _take(found: SweepWords, word: str, value: str) -> None:
    if word == "--runs":
        found.files.append(Path(value))
    elif word == "--log-pth":
        found.directory = Path(value).expanduser().absolute()
    elif word == "--metric":
        found.metric = value
    elif not value.isdecimal() or int(value) < 1:
        raise UsageError(f"--halving {value}: must be a round, a whole number from 1 on")
    else:
        found.halving = int(value)


def _stored_words(words: SweepWords) -> tuple[SweepWords, list[str]]:
    """Return the words with which the sweep of --log-pth began."""
    if words.directory is None:
        raise UsageError("--continue: which sweep? give --log-pth DIR")
    if words.axes or words.files or words.rest or words.halving:
        raise UsageError("--continue: the sweep goes on with the settings it began with; give --log-pth DIR alone")
    command = [str(word) for word in read_sweep(words.directory)["command"]]
    stored = parse_words(command)
    return dataclasses.replace(stored, directory=words.directory, go_on=True, dry_run=words.dry_run, yes=True), command


def _config(flags: TrainFlags, names: set[str], values: Values) -> RunConfig:
    """Return the checked settings of a run: those of `fastlocal train` with the swept fields as flags."""
    fields = {field: value for field, value in values.items() if field != "clients"}
    own = dataclasses.replace(
        flags, clients=values.get("clients", flags.clients), run=flags.run.with_values(**fields)
    )
    config = resolve(own, names | values.keys())
    check(config)
    return config


def _default_directory(name: str) -> Path:
    from ..checkpoint.run_directory import default_directory

    return default_directory(f"sweep_{name}").absolute()


def _plan(runs: Sequence[SweepRun]) -> str:
    """Describe a sweep before it begins: its fields, its runs and its groups."""
    from ..sweeps.train import group_runs

    fields = [f"{field:<14}{', '.join(map(str, values))}" for field, values in swept_fields(runs).items()]
    groups = group_runs(runs)
    counts = ", ".join(str(len(group)) for group in groups)
    one = f"{len(runs)} runs of one program"
    lines = [one if len(groups) == 1 else f"{len(runs)} runs of {len(groups)} programs: {counts}"]
    return "\n".join([*lines, *fields, *(f"  {run.name}" for run in runs)])


def _start(
    words: SweepWords, flags: TrainFlags, runs: Sequence[SweepRun], directory: Path, command: Sequence[str]
) -> int:
    ranks = LaunchInfo.from_environment()
    if ranks.size > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # no C++ stack traces if a rank is missing
    with defer_signals():
        import torch

        from ..distributed.world import connect
        from ..runs.resolve import resolve_device

    machine = flags.run.machine
    device = resolve_device(machine.device, ranks)
    with connect(ranks, url=machine.dist_url, timeout=machine.timeout, device=device) as world:
        try:
            with deadline(flags.run.log.grace, partial(_leave, directory)):
                _train(words, runs, directory, command, world, flags.run.name)
        except StoppedUnsaved as alone:
            _leave(directory, f": {alone}")
        except torch.OutOfMemoryError:
            print(f"fastlocal: stopped: {device} has no memory left; lower --batch-size or --memory-limit; "
                  f"{_how_to_go_on(directory)}", file=sys.stderr)  # fmt: skip
            return NO_MEMORY
        except KeyboardInterrupt:
            world.ask_to_stop()
            if world.is_rank0:
                print(f"fastlocal: stopped by a signal; {_how_to_go_on(directory)}", file=sys.stderr)
            return STOPPED
        world.all_gather_object(None, "the end")  # all ranks have written their files
    return 0


def _train(
    words: SweepWords, runs: Sequence[SweepRun], directory: Path, command: Sequence[str], world: World, name: str
) -> None:
    with defer_signals():
        from ..models import refuse_unknown
        from ..reports.tables import write_tables
        from ..sweeps.console import SweepConsole
        from ..sweeps.ending import summary_text, write_report_files
        from ..sweeps.named_runs import NamedRuns
        from ..sweeps.train import train_sweep

    for model in dict.fromkeys(run.config.model.model for run in runs):
        refuse_unknown(model)  # before the first run of another model trains
    with ExitStack() as resources:
        files = resources.enter_context(
            closing(SweepDirectory(directory, name, command, runs, writes=world.is_rank0, overwrite=words.overwrite))
        )
        world.all_gather_object(None, "the directory of the sweep")
        console = resources.enter_context(closing(SweepConsole(files, runs, shows=world.is_rank0)))
        console.message(_plan(runs).partition("\n")[0])
        halving = None if words.halving is None else Halving(words.halving, words.metric)
        builder = NamedRuns(world, console.message, resume=words.go_on)
        options = {"resume": words.go_on, "overwrite": words.overwrite}
        try:
            train_sweep(runs, builder, files, world, console, halving=halving, **options)
        finally:
            if world.is_rank0 and files.begun:
                write_tables(directory)
    if world.is_rank0:
        print(summary_text(directory, words.metric))
        for line in write_report_files(directory):
            print(line)


def _leave(directory: Path, detail: str = " in time") -> None:
    """End the process at once; the files on the disk are intact at every moment."""
    text = f"fastlocal: stopped by a signal, without saving{detail}; {_how_to_go_on(directory)}"
    print(text, file=sys.stderr, flush=True)
    os._exit(STOPPED)


def _how_to_go_on(directory: Path) -> str:
    return f"`fastlocal sweep --log-pth {directory} --continue` goes on"
