"""Translation of messages for the Python API: flags become arguments.

The code below the API names flags, as the command line does. The API translates each message for its caller:
`--executor looped` becomes `executor="looped"`, and `--bn 0` becomes `bn=False`.
"""

from __future__ import annotations

import contextlib
import functools
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from ..common.errors import NonFiniteLoss, RankMissing, StoppedUnsaved, UsageError
from .schema import AREA_OF, AREAS

UNSUPPORTED = (
    *("client_column", "label_column"),
    *("context", "n_layers", "width", "n_heads"),
    *("data_pth", "train_pth", "val_pth", "image_size", "n_groups", "resume", "resume_pth", "dist_url"),
    *("start_lr", "lr", "log_pth", "total_batch_size"),
)
"""Fields without an argument: another argument replaces them, or only named models and data sets have them."""
ARGUMENTS = {
    "client_lr": "lr",
    "step1": "local_steps",
    "step2": "local_steps",
    "step3": "local_steps",
    "eval_freq1": "eval_every",
    "eval_freq2": "eval_every",
    "eval_freq3": "eval_every",
    "save_freq1": "save_every",
    "save_freq2": "save_every",
    "save_freq3": "save_every",
    "wd": "weight_decay",
    "log_pth": "directory",
}
"""Argument of each field whose argument has another name."""
OTHERS: dict[str, tuple[str, Any]] = {
    "clients": ("clients", int),
    "continue": ("resume", bool),
    "ops": ("ops", str),
    "over": ("over", str),
    "overwrite": ("overwrite", bool),
}
"""Argument and type of each flag that is not a field."""
SWITCHES = ("continue", "overwrite")
"""Flags that mean True without a value."""
WORDS = {"dataset": "data set", "model": "model"}
"""Words for fields that the API sets itself; other fields without an argument are named by their own words."""
PHRASES = {
    "--rounds or --epochs extends it": "more rounds extend it",
    ", or give --dist-url": "",
    "(-1 takes as many)": "(None takes as many)",
}
"""Phrases that are replaced as a whole."""
KNOWN = {"device": r"cpu|cuda(?::\d+)?", "conv_strategy": "grouped|loop|im2col|triton|auto"}
"""Patterns of text values that may follow their flag anywhere; other texts count only at the start of a message."""

NUMBER = r"-?\d(?:[\d.,]*\d)?(?:e[+-]?\d+)?|-?inf|nan"
FLAG = re.compile(r"`[^`]*`|(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)")


@contextlib.contextmanager
def python_names() -> Iterator[None]:
    """Translate the flags in every user error that leaves the block into arguments."""
    try:
        yield
    except (UsageError, NonFiniteLoss, RankMissing, StoppedUnsaved) as error:
        error.args = tuple(to_python_names(part) if isinstance(part, str) else part for part in error.args)
        raise


def to_python_names(text: str) -> str:
    """Replace the flags in `text` by arguments of fastlocal.train, except in commands between backquotes."""
    for phrase, replacement in PHRASES.items():
        text = text.replace(phrase, replacement)
    result, at = "", 0
    for flag in FLAG.finditer(text):
        name = (flag[1] or "").replace("-", "_")
        if flag.start() < at or (name not in AREA_OF and name not in OTHERS):
            continue
        between = text[at : flag.start()]
        result += ", " if between == " " and at else between
        argument, at = _argument(name, text, flag.end())
        result += argument
    return _realign(result + text[at:], len(text))


def _argument(name: str, text: str, end: int) -> tuple[str, int]:
    """Return the argument for a flag that ends at `end`, with its value if it has one, and the end of the value."""
    argument, kind = OTHERS[name] if name in OTHERS else (ARGUMENTS.get(name, name), _types()[name])
    meaningless = name in WORDS or (name in UNSUPPORTED and name not in ARGUMENTS)
    if meaningless:
        argument = WORDS.get(name, name.replace("_", " "))
    pattern = _pattern(name, kind, first=end == len(name) + len("--"))
    value = re.compile(f" ({pattern})(?![\\w-])").match(text, end)
    if value is None:
        return f"{argument}=True" if name in SWITCHES else argument, end
    end = value.end()
    if meaningless:
        return f"{argument} {value[1]}", end
    result = f"{argument}={_literal(kind, value[1])}"
    other = re.compile(f" or ({pattern})(?![\\w-])").match(text, end) if typing.get_origin(kind) is Literal else None
    return (result, end) if other is None else (f"{result} or {_literal(kind, other[1])}", other.end())


@functools.cache
def _types() -> dict[str, Any]:
    """Return {field: its type without None}."""
    hints = {name: typing.get_type_hints(AREAS[area])[name] for name, area in AREA_OF.items()}
    return {name: _without_none(hint) for name, hint in hints.items()}


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def _pattern(name: str, kind: Any, first: bool) -> str:
    """Return the pattern of a field's value after its flag; `first` if the flag begins the message."""
    if typing.get_origin(kind) is Literal:
        return "|".join(["None", *map(re.escape, typing.get_args(kind))])
    if typing.get_origin(kind) is tuple:
        return rf"None|\([^)]*\)|(?:{NUMBER})(?: (?:{NUMBER}))*"
    if kind is bool:
        return "None|True|False|[01]"
    if kind in (int, float):
        return f"None|{NUMBER}"
    return "|".join([*(["[^:].*?(?=: )"] if first else []), "None", *([KNOWN[name]] if name in KNOWN else [])])


def _literal(kind: Any, value: str) -> str:
    """Format a value as Python source."""
    if value == "None" or value.startswith("("):
        return value
    if kind is bool:
        return str(value in ("1", "True"))
    if typing.get_origin(kind) is tuple:
        return f"({', '.join(value.split())})"
    return value if kind in (int, float) else '"' + value.strip("'") + '"'


def _realign(line: str, length: int) -> str:
    """Move the second column of a table's line back to its place after a translation."""
    gap = re.search(r"(?<=\S) {2,}", line)
    if gap is None:
        return line
    surplus = min(len(line) - length, len(gap[0]) - 1)
    return line if surplus <= 0 else line[: gap.start()] + gap[0][surplus:] + line[gap.end() :]
