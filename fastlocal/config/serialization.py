"""Conversion of config.json and other untyped values to the fields of a RunConfig. No torch."""

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

LATER_AREAS = ("server", "algorithm")
"""Areas that version 0.1 did not write."""


def read_config(path: Path) -> RunConfig:
    """Read a RunConfig that `to_json` wrote to `path`.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file holds no RunConfig.
    """
    return config_from_json(json.loads(path.read_text()))


def config_from_json(stored: Any) -> RunConfig:
    """Build a RunConfig from parsed JSON; raises ValueError if it does not fit."""
    if not isinstance(stored, dict):
        raise ValueError("it is not a JSON object")
    missing = [area for area in AREAS if area not in stored and area not in LATER_AREAS]
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
    """Convert `value` to the field type `hint`; numbers of other libraries become Python's.

    Args:
        hint: Type annotation of the field.
        value: Any value.
        where: Name of the field, for the message.

    Raises:
        ValueError: The value is of another type.
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
    expected = " or ".join(map(repr, options)) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise ValueError(f"{where} is {value!r}, not {expected}")
