"""What a forward pass left alone in its first steps, and must leave alone in all others, as clients share it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import UsageError
from .own_tensors import places_of
from .python_state import PythonState

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Constants:
    """Buffers, and parameters that are not trained, of a module whose forward left them alone in the first steps."""

    def __init__(self, module: nn.Module, changing: Container[str]) -> None:
        """Begin with all but those whose names are `changing`."""
        places = list(places_of(module))
        others = {id(place.value) for place in places if place.name in changing}  # under all their names
        self._places = [place for place in places if id(place.value) not in others]
        self._versions, self._sums = self._identities(), self._checksums()

    def check(self, *, values: bool = True) -> None:
        """Raise UsageError where one has changed. values: whether to look at their numbers, as .data hides changes."""
        self._compare(self._identities(), self._versions)
        if values:
            self._compare(self._checksums(), self._sums)

    def _compare(self, now: list[Any], before: list[Any]) -> None:
        for place, own, old in zip(self._places, now, before, strict=True):
            if own != old:
                raise UsageError(_late(place.name))

    def _identities(self) -> list[Any]:
        found = []
        for place in self._places:
            strided = place.value.layout == torch.strided
            found.append((id(place.kept[place.key]), place.value._version, place.value.data_ptr() if strided else 0))
        return found

    def _checksums(self) -> list[Any]:
        sums = [_checksum(place.value) for place in self._places]
        return torch.stack(sums).tolist() if sums else []


class Unchanged:
    """The constants of a module, its Python state, and that of its loss, after a first step."""

    def __init__(
        self, module: nn.Module, changing: Container[str], loss: Callable[..., Any] | None, recomputed: Collection[str]
    ) -> None:
        """Begin.

        Args:
            module: In the state that it has after a step.
            changing: Names of its trained parameters and of what else clients keep for themselves.
            loss: None if it may keep something from call to call.
            recomputed: Paths of attributes that each forward pass computes anew.
        """
        self._constants = Constants(module, changing)
        self._module = PythonState(module, own=module)
        self._loss = PythonState(loss, without=self._module.reached)
        self._module.ignore(recomputed)

    def check(self, *, values: bool = True) -> None:
        """Raise UsageError where something has changed. values: whether to look at the numbers of tensors."""
        self._constants.check(values=values)
        for change in self._module.changes(values=values):
            raise UsageError(_late(f"the attribute {change.path}"))
        for change in self._loss.changes(values=values):
            raise UsageError(
                f"loss: changes what it keeps in {change.path}, which it left alone in the first steps; what changes "
                "late is not seen in time: change it from the first call on"
            )


def _late(what: str) -> str:
    return (
        f"model: its forward changes {what}, which it left alone in the first steps; what changes late is not kept by "
        "client: make it a buffer (register_buffer) and change it from the first step on"
    )


def _checksum(value: Tensor) -> Tensor:
    """Return int64 [2]: the sums of the bits of all elements, as integers, and of every second one."""
    value = value.detach()
    if value.layout != torch.strided or value.is_quantized:
        return torch.zeros(2, dtype=torch.int64, device=value.device)
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    bits = value.contiguous().view(_BITS[value.element_size()]).reshape(-1)
    return torch.stack([bits.sum(dtype=torch.int64), bits[::2].sum(dtype=torch.int64)])
