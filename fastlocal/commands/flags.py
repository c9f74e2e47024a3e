"""Conversion of flags to a RunConfig: recipes, `config.json`, and the reference's values for "not set"."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..common.errors import UsageError, nearest
from ..config.field_docs import field_docs
from ..config.recipes import RECIPES, default
from ..config.schema import AREA_OF, AREAS, RunConfig
from ..config.serialization import read_config
from ..config.sync_checks import refuse_unused
from ..config.training_settings import ServerConfig
from ..config.validation import PARTITION_PARAMETERS, refuse_phases
from .argv import is_flag, normalise, refuse_half_precision, refuse_unknown, value_of
from .parser import parse_flags
from .short_help import short_help

RATES = ("start_lr", "lr", "client_lr")

PARTICIPATION = ("client_epochs", "client_state")
"""Fields whose defaults depend on whether all clients take part in every round."""
DERIVED = {
    "dataset": ("mean", "std", "aug", "source"),
    "data_pth": ("mean", "std", "source"),
    "model": ("bn", "executor", "chunk", "conv_strategy", "compile", "cuda_graph"),
    "device": ("executor", "chunk", "conv_strategy", "compile", "cuda_graph", "source"),
    "executor": ("conv_strategy", "cuda_graph"),
    "clients": ("chunk", *PARTICIPATION),
    "total_batch_size": ("chunk", *PARTICIPATION),
    "population": PARTICIPATION,
    "partition": ("population", "client_weights", *PARTICIPATION, *PARTITION_PARAMETERS),
    "cohort_sampling": ("client_weights", *PARTICIPATION),
    "clients_drop": PARTICIPATION,
    "server_optimizer": tuple(spec.name for spec in dataclasses.fields(ServerConfig))[1:],
}
"""Fields of a config.json that follow from another field; if a flag changes that field, they are derived anew."""


@dataclass(frozen=True)
class TrainFlags:
    """fastlocal train [RECIPE] [--flag value ...]: train many Local SGD clients.

    A recipe comes first; `fastlocal recipes` lists them. Flags change the recipe's values. Flags that take 0 or 1 mean
    1 without a value."""

    clients: int | None = None
    """number of clients, instead of --total-batch-size"""
    config: Path | None = None
    """repeat the run of this config.json; other flags change it"""
    overwrite: bool = False
    """start afresh in a --log-pth that holds a run"""
    continue_: Annotated[bool, tyro.conf.arg(name="continue")] = False
    """continue the run of --log-pth, by default the one of --config, from its resume.pt; without one start over"""
    dry_run: bool = False
    """print the resolved plan and stop"""
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


OWN = tuple(spec.name.rstrip("_") for spec in dataclasses.fields(TrainFlags) if spec.name != "run")
RUN = tuple(spec.name for spec in dataclasses.fields(RunConfig) if spec.name not in AREAS)
BOOLEANS = tuple(
    "--" + spec.name.rstrip("_").replace("_", "-")
    for kind in (TrainFlags, *AREAS.values())
    for spec in dataclasses.fields(kind)
    if str(spec.type).startswith("bool")
)


def parse(argv: Sequence[str], command: str = "fastlocal train") -> TrainFlags:
    """Parse the flags of `fastlocal train`, and of other commands with the same flags, into a RunConfig.

    Raises:
        UsageError: A flag is unknown, contradicts another one, or has an invalid value.
        SystemExit: The help was printed (status 0).
    """
    flags, names = read_flags(argv, command)
    config = resolve(flags, names)
    refuse_unused(names, config)
    return dataclasses.replace(flags, run=config)


def read_flags(argv: Sequence[str], command: str) -> tuple[TrainFlags, set[str]]:
    """Parse flags, which `resolve` makes a RunConfig, and return them with the names of those that are set."""
    recipe, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    words = normalise(rest)
    refuse_unknown(words, (*OWN, *RUN, *AREA_OF), command)
    refuse_half_precision(words)
    _refuse_stray_recipe(recipe, words, command)
    base = _base(recipe, words)
    if {"-h", "--help"} & {*words}:
        own = {name.rstrip("_"): text for name, text in field_docs(TrainFlags).items()}
        print(short_help(command, base, own))
        raise SystemExit(0)
    words = ["--help" if word == "--help-all" else word for word in words]
    style = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
    flags = parse_flags(TrainFlags, command, words, default=TrainFlags(run=base), config=style)
    names = {word.lstrip("-").replace("-", "_") for word in words if is_flag(word)}
    return flags, names


def _refuse_stray_recipe(recipe: str | None, words: Sequence[str], command: str) -> None:
    if recipe is not None and words and not is_flag(words[0]):
        raise UsageError(f"{words[0]!r} after the recipe {recipe!r}: give one recipe, then flags")
    for before, word in zip(words, words[1:], strict=False):
        if word in RECIPES and (not is_flag(before) or before in BOOLEANS):
            raise UsageError(f"the recipe {word!r} comes first: {command} {word} {before} ...")


def _base(recipe: str | None, words: Sequence[str]) -> RunConfig:
    """Return the configuration that the flags change: a recipe, a config.json, or the defaults of a program."""
    stored = value_of("--config", words)
    if recipe is not None and stored is not None:
        raise UsageError(f"--config {stored}: cannot be combined with the recipe {recipe!r}; give one of them")
    if recipe is not None:
        if recipe not in RECIPES:
            known = ", ".join(RECIPES)
            raise UsageError(f"unknown recipe {recipe!r}{nearest(recipe, RECIPES)}; known: {known}")
        return RECIPES[recipe]()
    if stored is not None:
        return _read(Path(stored).absolute())
    return default("epochs" if value_of("--schedule", words) == "epochs" else "rounds")


def _read(path: Path) -> RunConfig:
    try:
        return read_config(path)
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--config {path}: is not the config.json of a run ({reason[:120]})") from error


def resolve(flags: TrainFlags, names: set[str]) -> RunConfig:
    """Resolve settings of the command line alone: the choice of a rate, --clients, -1 for "not set".

    Args:
        flags: Parsed flags.
        names: Names of the flags that were set.

    Raises:
        UsageError: Flags contradict each other.
    """
    config = flags.run
    refuse_phases(names, config)
    rates = [name for name in RATES if name in names]
    changes: dict[str, Any] = {}
    if len(rates) > 1:
        both = " and ".join("--" + name.replace("_", "-") for name in rates)
        raise UsageError(f"{both}: give one of them (--start-lr is per client, --lr per 256 samples)")
    if rates:
        changes |= {name: None for name in RATES if name != rates[0]}
    if "epochs" in names and "rounds" in names:
        raise UsageError("--epochs and --rounds: give one of them")
    if "epochs" in names:
        changes["rounds"] = None
    if config.owned and config.sgd.client_lr is None:  # a default per client, which no cohort scales
        changes |= {"client_lr": config.sgd.start_lr, "start_lr": None, "lr": None}
    if config.client.local_epochs is not None:  # the steps of a recipe or a config.json
        changes["step1"] = RunConfig().schedule.step1
    if flags.clients is not None:
        if "total_batch_size" in names:
            raise UsageError("--clients and --total-batch-size: give one of them")
        if flags.clients < 1:
            raise UsageError(f"--clients {flags.clients}: must be at least 1")
        changes["total_batch_size"] = flags.clients * config.client.batch_size
    if config.sgd.max_lr is not None and config.sgd.max_lr < 0 and math.isfinite(config.sgd.max_lr):
        changes["max_lr"] = None
    if config.schedule.steps_per_epoch == -1:
        changes["steps_per_epoch"] = None
    if config.model.n_groups == -1:
        changes["n_groups"] = RunConfig().model.n_groups
    if flags.config is not None:
        chosen = _chosen(_read(flags.config.absolute()), config)
        for cause, derived in DERIVED.items():
            if cause in names:
                changes |= {name: RunConfig().value(name) for name in derived if name not in {*names, *chosen}}
    if flags.continue_:
        if flags.overwrite:
            raise UsageError("--continue and --overwrite: give one of them")
        if flags.config is None and config.log.log_pth is None:
            raise UsageError("--continue: which run? give --config RUN/config.json or --log-pth RUN")
        if "log_pth" not in names and flags.config is not None:
            changes["log_pth"] = str(flags.config.absolute().parent)
    elif flags.config is not None and "log_pth" not in names and not flags.overwrite:
        changes["log_pth"] = None  # a repeated run gets a new folder
    return config.with_values(**changes)


def _chosen(stored: RunConfig, config: RunConfig) -> set[str]:
    """Return the settings of clients with own samples that differ from their defaults in `stored`, and fit `config`."""
    if not (stored.owned and config.owned):
        return set()
    client = stored.client
    everybody = client.population == stored.clients and client.clients_drop == 0
    everybody = everybody and client.cohort_sampling in ("uniform", "cyclic")
    defaults = {
        "client_epochs": "continue" if everybody else "restart",
        "client_state": "keep" if everybody else "reset",
        "client_weights": "uniform" if client.cohort_sampling == "weighted" else "examples",
    }
    chosen = {name for name, default in defaults.items() if stored.value(name) != default}
    if client.partition == config.client.partition:
        return {*chosen, "population", *PARTITION_PARAMETERS} - (
            {"population"} if _brought(client.partition) else set()
        )
    if not _brought(client.partition) and not _brought(config.client.partition):
        chosen.add("population")
    return chosen


def _brought(partition: str) -> bool:
    """Return True if a partition has its number of clients from a file or the data set."""
    return partition == "natural" or bool(Path(partition).suffix)
