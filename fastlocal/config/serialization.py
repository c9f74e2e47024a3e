"""config.json and other values of unknown kind, read as the fields of a RunConfig. Without torch."""

from __future__ import annotations

import dataclasses
import json
import numbers
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from .schema import AREAS, RunConfig

T = TypeVar("T")


def read_config(path: Path) -> RunConfig:
    """The RunConfig that `to_json` wrote to `path`.

    Raises OSError where the file cannot be read, ValueError where it is not such a file.
    """
    return config_of(json.loads(path.read_text()))


def config_of(stored: Any) -> RunConfig:
    """The RunConfig that JSON gave back; raises ValueError where it is none."""
    if not isinstance(stored, dict):
        raise ValueError("it is not a JSON object")
    missing = [area for area in AREAS if area not in stored]
    if missing:
        raise ValueError(f"it has no field {missing[0]}")
    return _build(RunConfig, stored, "")


def _build(kind: type[T], stored: Mapping[str, Any], where: str) -> T:
    hints = typing.get_type_hints(kind)
    unknown = [name for name in stored if name not in hints]
    if unknown:
        raise ValueError(f"unknown field {where}{unknown[0]}")
    values = {name: convert(hints[name], value, where + name) for name, value in stored.items()}
    return kind(**values)


def convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as a field of type `hint` holds it; numbers of other libraries become Python's.

    where: the field's name, for the message
    Raises ValueError where it is of another kind.
    """
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {value!r}, not an object")
        return _build(typing.cast(type, hint), value, where + ".")
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return convert(next(option for option in options if option is not type(None)), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(convert(options[0], item, where) for item in value)
    if origin is Literal and value in options:
        return value
    if hint is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    wanted = " or ".join(map(repr, options)) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise ValueError(f"{where} is {value!r}, not {wanted}")
