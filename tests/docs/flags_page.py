"""The page docs/flags.md, made from the dataclasses that hold the flags and the strings below their fields."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from fastlocal.commands.compare import CompareFlags
from fastlocal.commands.evaluate import EvaluateFlags
from fastlocal.commands.flags import TrainFlags
from fastlocal.commands.partition import PartitionFlags
from fastlocal.commands.prepare import PrepareFlags
from fastlocal.commands.report import ReportFlags
from fastlocal.commands.sweep import HELP as SWEEP_HELP
from fastlocal.commands.verify import HELP
from fastlocal.config.field_docs import field_docs
from fastlocal.config.python_names import ARGUMENTS, UNSUPPORTED
from fastlocal.config.recipes import NEVER, RECIPES, default
from fastlocal.config.schema import AREA_OF, AREAS, RunConfig
from tests.docs.markdown_tables import table

NOT_SET = "not set"
POSITIONAL = ("checkpoint", "runs")
INTRODUCTION = """\
# Flags

This page is generated from the sources: `python -m tests.docs.regenerate` writes it, and a test compares it.

```sh
fastlocal train --help        # the flags that most runs need
fastlocal train --help-all    # every flag
```

`train`, `plan`, `profile` and `verify` take the same flags. A recipe comes first, and flags change what it says. A flag
that takes 0 or 1 means 1 when it stands alone. "H" is the number of local steps in a communication round;
[concepts](concepts.md) explains the other words.

A default of "not set" means that the data, the model or the machine decides. `config.json` in the run directory holds
what was decided.

`fastlocal.train` takes each of these fields as an argument of the same name, with `_` for `-` and True and False for 1
and 0. The last section lists the exceptions.
"""
PREAMBLE = {
    "sgd": (
        "One of three flags gives the rate: `--start-lr` is multiplied by the number of clients, `--lr` is per 256 "
        "samples, and `--client-lr` is applied as it is."
    ),
    "schedule": "`--schedule epochs` changes several defaults; the table below the recipes lists them.",
}

VERIFY = [(f"`{flag}`", text) for flag, text in re.findall(r"^  (--\w+ \S+) +(.+)$", HELP, flags=re.MULTILINE)]
"""The flags of `fastlocal verify` that `train` has not, as its help says them."""
SWEEP = [
    (f"`{flag}`", " ".join(text.split()))
    for flag, text in re.findall(r"^  (--\w\S*(?: \S+)*?) {2,}(.+(?:\n {5,}.+)*)$", SWEEP_HELP, flags=re.MULTILINE)
]
"""The flags of `fastlocal sweep` that `train` has not, as its help says them."""


def page() -> str:
    """Return the text of docs/flags.md."""
    parts = [INTRODUCTION, "## The command\n", _rows(TrainFlags, skip=("run",))]
    for area, kind in AREAS.items():
        parts += [f"## {_title(kind)}\n", *([PREAMBLE[area] + "\n"] if area in PREAMBLE else []), _rows(kind)]
    parts += ["## Recipes\n", "Each recipe is a set of defaults that flags may change.\n"]
    for name, recipe in RECIPES.items():
        parts += [f"### {name}\n", _sentence(recipe.__doc__ or ""), _changes(recipe())]
    parts += ["## Defaults of `--schedule epochs`\n", _changes(default("epochs"))]
    parts += ["## fastlocal evaluate\n", _sentence(EvaluateFlags.__doc__ or ""), _rows(EvaluateFlags)]
    parts += ["## fastlocal prepare\n", _sentence(PrepareFlags.__doc__ or ""), _rows(PrepareFlags)]
    parts += ["## fastlocal partition\n", _sentence(PartitionFlags.__doc__ or ""), _rows(PartitionFlags)]
    for name, kind in (("report", ReportFlags), ("compare", CompareFlags)):
        parts += [f"## fastlocal {name}\n", _sentence(kind.__doc__ or ""), _rows(kind)]
    parts += ["## fastlocal sweep\n", "It takes the flags of `train` and these:\n", table(("flag", "meaning"), SWEEP)]
    parts += ["## fastlocal verify\n", "It takes the flags of `train` and these:\n", table(("flag", "meaning"), VERIFY)]
    parts += ["## Names in Python\n", "These arguments of `fastlocal.train` have other names than the flags.\n"]
    renamed: dict[str, list[str]] = {"clients": ["clients"]}
    for name, argument in ARGUMENTS.items():
        renamed.setdefault(argument, []).append(name)
    parts.append(table(("argument", "flags"), ((f"`{name}`", _flags(flags)) for name, flags in renamed.items())))
    absent = [name for name in UNSUPPORTED if name not in ARGUMENTS and name != "total_batch_size"]
    parts.append(
        f"The model and the data are arguments there, so `fastlocal.train` has none of these: {_flags(absent)}. "
        "Its `lr` is `--client-lr`.\n"
    )
    return "\n".join(parts)


def _title(kind: type) -> str:
    """Return the first sentence of an area's docstring without its full stop."""
    return (kind.__doc__ or "").strip().splitlines()[0].partition(".")[0]


def _sentence(text: str) -> str:
    return " ".join(text.split()) + "\n"


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"`{_flag(name)}`" for name in names)


def _flag(name: str) -> str:
    return "--" + name.rstrip("_").replace("_", "-")


def _rows(kind: Any, skip: tuple[str, ...] = ()) -> str:
    docs, hints = field_docs(kind), typing.get_type_hints(kind)
    rows = []
    for spec in dataclasses.fields(kind):
        if spec.name not in skip:
            required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
            given = "required" if required else _shown(spec.default)
            name = spec.name.upper() if spec.name in POSITIONAL else _flag(spec.name)
            rows.append((f"`{name}`", _kind(hints[spec.name]), given, _plain(docs[spec.name])))
    return table(("flag", "value", "default", "meaning"), rows)


def _kind(hint: Any) -> str:
    """Return what a flag takes, in words."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _kind(next(kind for kind in typing.get_args(hint) if kind is not type(None)))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(hint))
    if origin is tuple:
        return "numbers" if float in typing.get_args(hint) else "paths"
    return {bool: "0 or 1", int: "whole number", float: "number", Path: "path"}.get(hint, "text")


def _shown(value: Any) -> str:
    if value is None:
        return NOT_SET
    if isinstance(value, bool):
        return str(int(value))
    return "never" if value == NEVER else f"`{value}`" if isinstance(value, str) else str(value)


def _plain(text: str) -> str:
    """Return a flag's text with other flags in code, and a value of None as this page names it."""
    words = re.sub(r"(?<![\w-])--[a-z][\w-]*", lambda flag: f"`{flag[0]}`", " ".join(text.split()))
    return words.replace("None or -1:", f"{NOT_SET} or -1:").replace("None:", f"{NOT_SET}:").replace("<", "&lt;")


def _changes(config: RunConfig) -> str:
    """Return a table of the values in which a config differs from the defaults."""
    usual, rows = RunConfig(), []
    if config.clients != usual.clients:
        rows.append(("`--clients`", config.clients, usual.clients))
    names = [name for name in AREA_OF if name != "total_batch_size" and config.value(name) != usual.value(name)]
    for name in names:
        phases = [f"{name[:-1]}{phase}" for phase in (1, 2, 3)]
        flag, shown = f"`{_flag(name)}`", _shown(config.value(name))
        if {*phases} <= {*names} and len({(config.value(one), usual.value(one)) for one in phases}) == 1:
            if name != phases[0]:
                continue
            flag = f"{flag} to `{_flag(phases[-1])}`"
        rows.append((flag, shown, _shown(usual.value(name))))
    return table(("flag", "here", "default"), rows)
