"""Flags to RunConfig: recipes, `config.json`, and the reference's ways of saying "not set"."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..config import RunConfig, read_config
from ..errors import UsageError, nearest
from ..recipes import RECIPES, default

RATES = ("start_lr", "lr", "client_lr")


@dataclass(frozen=True)
class TrainFlags:
    """fastlocal train [RECIPE] [--flag value ...]: train many Local SGD clients.

    A recipe comes first; `fastlocal recipes` lists them. Flags change what the recipe says. Flags that take 0 or 1 mean
    1 when they stand alone.
    """

    clients: int | None = None
    """number of clients, instead of --total-batch-size"""
    config: Path | None = None
    """repeat the run of this config.json; other flags change it"""
    overwrite: bool = False
    """start afresh in a --log-pth that holds a run"""
    dry_run: bool = False
    """print the resolved plan and stop"""
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


def parse(argv: Sequence[str]) -> TrainFlags:
    """The flags of `fastlocal train`, with `run` as they make it.

    Raises UsageError for combinations that contradict each other, SystemExit(2) for what the parser refuses.
    """
    recipe, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    words = normalise(rest)
    base = _base(recipe, words)
    flags = tyro.cli(
        TrainFlags,
        prog="fastlocal train",
        args=words,
        default=TrainFlags(run=base),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
        registry=registry(),
    )
    given = {word.split("=")[0].lstrip("-").replace("-", "_") for word in words if word.startswith("--")}
    return dataclasses.replace(flags, run=_settle(flags, given))


def registry() -> tyro.constructors.ConstructorRegistry:
    """Booleans as the reference writes them: 1/0/true/false, and bare they mean 1."""
    rules = tyro.constructors.ConstructorRegistry()

    @rules.primitive_rule
    def boolean(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[bool] | None:
        if info.type is not bool:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs="*",
            metavar="{0,1}",
            instance_from_str=_boolean,
            is_instance=lambda value: isinstance(value, bool),
            str_from_instance=lambda value: [str(int(value))],
        )

    return rules


def _boolean(words: list[str]) -> bool:
    meanings = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False}
    if not words:
        return True
    if len(words) > 1 or words[0].lower() not in meanings:
        raise ValueError(f"{' '.join(words)!r} is not 1, 0, true or false")
    return meanings[words[0].lower()]


def normalise(argv: Sequence[str]) -> list[str]:
    """`--flag=value` as two words, commas in --mean and --std as spaces, and the reference's `--wandb None`."""
    words: list[str] = []
    for word in argv:
        words += word.split("=", 1) if word.startswith("--") and "=" in word else [word]
    out: list[str] = []
    for previous, word in zip(["", *words], words, strict=False):
        if previous == "--wandb" and word == "None":
            out.append("online")
        elif "," in word and not word.startswith("--"):
            in_list = _flag_before(out) in ("--mean", "--std")
            out += word.replace(",", " ").split() if in_list else [word]
        else:
            out.append(word)
    return out


def _flag_before(words: Sequence[str]) -> str:
    return next((word for word in reversed(words) if word.startswith("--")), "")


def _base(recipe: str | None, words: Sequence[str]) -> RunConfig:
    """What the flags change: a recipe, a config.json, or the defaults of a program."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    first.add_argument("--schedule", choices=("rounds", "epochs"))
    chosen, _ = first.parse_known_args(words)
    if recipe is not None and chosen.config is not None:
        raise UsageError(f"--config {chosen.config}: cannot be combined with the recipe {recipe!r}; give one of them")
    if recipe is not None:
        if recipe not in RECIPES:
            known = ", ".join(RECIPES)
            raise UsageError(f"unknown recipe {recipe!r}{nearest(recipe, RECIPES)}; known: {known}")
        return RECIPES[recipe]()
    if chosen.config is not None:
        return _read(Path(chosen.config), words)
    return default(chosen.schedule or "rounds")


def _read(path: Path, words: Sequence[str]) -> RunConfig:
    """A run to repeat; it goes into a fresh directory unless --overwrite says to use its own again."""
    try:
        config = read_config(path)
    except OSError as error:
        raise UsageError(f"--config {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"--config {path}: is not a config.json of a run ({error})") from error
    return config if "--overwrite" in words else config.with_values(log_pth=None)


def _settle(flags: TrainFlags, given: set[str]) -> RunConfig:
    """Resolve what only a command line can say: one of several rates, --clients, -1 for "not set"."""
    config = flags.run
    rates = [name for name in RATES if name in given]
    changes: dict[str, Any] = {}
    if len(rates) > 1:
        named = " and ".join("--" + name.replace("_", "-") for name in rates)
        raise UsageError(f"{named}: give one of them (--start-lr is per client, --lr per 256 samples)")
    if rates:
        changes |= {name: None for name in RATES if name != rates[0]}
    if "epochs" in given and "rounds" in given:
        raise UsageError("--epochs and --rounds: give one of them")
    if "epochs" in given:
        changes["rounds"] = None
    if flags.clients is not None:
        if "total_batch_size" in given:
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
    return config.with_values(**changes)
