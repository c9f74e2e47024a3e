"""Seed the random generators that a user's Dataset draws from.

Before each read, the generators of torch, NumPy and Python and those of the Dataset are seeded from a key of the
sample's place in the run. So a sample depends neither on the process that reads it nor on earlier reads.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

MASK32, MASK64, MASK128 = 2**32 - 1, 2**64 - 1, 2**128 - 1
APART = 0x9E3779B97F4A7C15F39CC0605CEDC835
"""Difference between the keys of two generators: the odd number nearest to 2^128 over the golden ratio."""
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
DEPTH = 10
"""Maximum depth of the search. Subset, Subset, Dataset, Compose, list, transform, generator is 7 deep."""
MAX_OBJECTS, MAX_ITEMS = 5_000, 64
"""Limits of the search: objects in all, and items of one list or dictionary, because lists of samples are long."""
PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, type, ModuleType, Tensor, np.ndarray, np.generic)
LIBRARIES = frozenset({*sys.stdlib_module_names, "torch", "torchvision", "numpy", "scipy", "PIL"})
"""Packages whose functions and classes hold no generator."""


class Randomness:
    """The generators of torch, NumPy and Python, and those that a Dataset holds."""

    def __init__(self, dataset: Any) -> None:
        self.generators = list(find_generators(dataset))

    def seed(self, key: int) -> None:
        """Seed every generator from a key of 128 mixed bits: about 15 us, and 5 us per generator of the Dataset."""
        torch.default_generator.manual_seed(key & MASK64)
        np.random.seed(key + APART & MASK32)
        random.seed(key + 2 * APART & MASK128)
        for place, generator in enumerate(self.generators, 3):
            _seed(generator, key + place * APART & MASK128)

    @contextmanager
    def preserve(self) -> Iterator[None]:
        """Restore the state of every generator at the end."""
        shared = torch.get_rng_state(), np.random.get_state(), random.getstate()
        states = [_state(generator) for generator in self.generators]
        try:
            yield
        finally:
            torch.set_rng_state(shared[0])
            np.random.set_state(shared[1])
            random.setstate(shared[2])
            for generator, state in zip(self.generators, states, strict=True):
                _restore(generator, state)


def find_generators(dataset: Any) -> Iterator[Any]:
    """Find generators in attributes, lists, dictionaries, closures and the globals that functions use."""
    shared = torch.default_generator, np.random.mtrand._rand, random._inst  # type: ignore[attr-defined]
    visited = {id(generator) for generator in shared}
    queue: deque[tuple[Any, int]] = deque([(dataset, 0)])
    while queue and len(visited) < MAX_OBJECTS:
        value, depth = queue.popleft()
        if isinstance(value, PLAIN) or id(value) in visited:
            continue
        visited.add(id(value))
        if isinstance(value, GENERATORS):
            yield value
        elif depth < DEPTH:
            queue.extend((part, depth + 1) for part in _parts(value))


def _parts(value: Any) -> Iterable[Any]:
    """Return the objects that an object refers to, in the same order in every process."""
    if isinstance(value, dict):
        return [part for part, _ in zip(value.values(), range(MAX_ITEMS), strict=False)]
    if isinstance(value, list | tuple | deque):
        return [part for part, _ in zip(value, range(MAX_ITEMS), strict=False)]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, BuiltinMethodType):  # such as a method of a generator
        return [value.__self__]
    if isinstance(value, FunctionType):
        return _parts_of_function(value)
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget]
    classes = [kind for kind in type(value).__mro__ if not _in_library(kind)]
    slots = [getattr(value, name, None) for kind in classes for name in _slots(kind)]
    attributes = [part for kind in classes for part in vars(kind).values()]
    return [*getattr(value, "__dict__", {}).values(), *slots, *attributes]


def _parts_of_function(function: FunctionType) -> list[Any]:
    if _in_library(function):
        return []
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # an empty cell
            continue
    from_globals = [function.__globals__.get(name) for name in _names(function.__code__)]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [*cells, *defaults, *from_globals]


def _names(code: CodeType) -> list[str]:
    """Return the names that a function and its inner functions look up."""
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part)]
    return [*code.co_names, *inner]


def _slots(kind: type) -> list[str]:
    names = vars(kind).get("__slots__", ())
    return [names] if isinstance(names, str) else list(names)


def _in_library(value: Any) -> bool:
    return str(getattr(value, "__module__", None)).partition(".")[0] in LIBRARIES


def _seed(generator: Any, key: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(key & MASK64)
    elif isinstance(generator, random.Random):
        generator.seed(key)
    else:
        bits = _bits(generator)
        name = type(bits).__name__
        if name in ("PCG64", "PCG64DXSM"):  # a tenth of the time of a SeedSequence
            state = {"state": key, "inc": key * APART & MASK128 | 1}
            bits.state = {"bit_generator": name, "state": state, "has_uint32": 0, "uinteger": 0}
        elif isinstance(generator, np.random.RandomState) and name == "MT19937":
            generator.seed(key & MASK32)  # also drops the cached second normal number
        else:
            bits.state = type(bits)(key).state


def _bits(generator: Any) -> Any:
    return generator.bit_generator if isinstance(generator, np.random.Generator) else generator._bit_generator


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return None if isinstance(generator, random.SystemRandom) else generator.getstate()
    return generator.get_state() if isinstance(generator, np.random.RandomState) else generator.bit_generator.state


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator | np.random.RandomState):
        set_state: Any = generator.set_state
        set_state(state)
    elif isinstance(generator, random.Random):
        if state is not None:
            generator.setstate(state)
    else:
        generator.bit_generator.state = state
