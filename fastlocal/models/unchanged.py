"""Check that later steps do not change state that clients share and that the first steps did not change."""

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
    """Buffers and untrained parameters of a module that the first steps did not change."""

    def __init__(self, module: nn.Module, changing: Container[str], *, values: bool = False) -> None:
        """Record all tensors of a module except those named in `changing`; with `values`, their numbers too."""
        places = list(places_of(module))
        changing_ids = {id(place.value) for place in places if place.name in changing}  # excludes their other names too
        self._places = [place for place in places if id(place.value) not in changing_ids]
        self._versions = self._identities()
        self._sums = self._checksums() if values else []

    def check(self, *, values: bool = False) -> None:
        """Raise UsageError if a tensor has changed; with `values`, compare numbers too, as .data hides changes.

        Comparing numbers waits for a GPU. Under vmap there is no .data.
        """
        self._compare(self._identities(), self._versions)
        if values:
            self._compare(self._checksums(), self._sums)

    def _compare(self, now: list[Any], before: list[Any]) -> None:
        for place, own, old in zip(self._places, now, before, strict=True):
            if own != old:
                raise UsageError(_late(place.name))

    def _identities(self) -> list[Any]:
        identities = []
        for place in self._places:
            address = place.value.data_ptr() if place.value.layout == torch.strided else 0
            identities.append((id(place.tensors[place.key]), place.value._version, address))
        return identities

    def _checksums(self) -> list[Any]:
        sums = [_checksum(place.value) for place in self._places]
        return torch.stack(sums).tolist() if sums else []


class StateGuard:
    """Snapshot of the constants and the Python state of a module, and of the state of its loss."""

    def __init__(
        self, module: nn.Module, changing: Container[str], loss: Callable[..., Any] | None, recomputed: Collection[str]
    ) -> None:
        """Take the snapshot.

        Args:
            module: The module after a step.
            changing: Names of the trained parameters and of the buffers that each client has.
            loss: The loss, or None if it may change its state.
            recomputed: Paths of the attributes that each forward pass recomputes.
        """
        self._constants = Constants(module, changing, values=True)
        self._module = PythonState(module, own=module)
        self._loss = PythonState(loss, without=self._module.reached)
        self._module.ignore(recomputed)

    def check(self, *, values: bool = True) -> None:
        """Raise UsageError if something has changed; with `values`, compare the numbers of tensors too."""
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
    """Return the sums of all elements' bits as integers, and of every second element's, int64 [2]."""
    value = value.detach()
    if value.layout != torch.strided or value.is_quantized:
        return torch.zeros(2, dtype=torch.int64, device=value.device)
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    bits = value.contiguous().view(_BITS[value.element_size()]).reshape(-1)
    return torch.stack([bits.sum(dtype=torch.int64), bits[::2].sum(dtype=torch.int64)])
