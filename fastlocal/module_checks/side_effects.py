"""Check that first steps with copies do not change the user's module."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from ..common.errors import UsageError
from ..models.python_state import PythonState
from ..models.state_holders import PLAIN
from .structure import refuse_aliases


class UserModuleState:
    """State of the user's own module before the first steps; empty if there is none.

    Attributes:
        reached: The ids of all objects reachable from the module.
    """

    def __init__(self, module: nn.Module | None) -> None:
        """Take a snapshot of the state.

        Raises:
            UsageError: A function of the module refers to the memory of a parameter by another tensor.
        """
        self._module, self._state = module, PythonState(module)
        self.reached: Collection[int] = self._state.reached
        if module is not None:
            refuse_aliases("model", self._state.tensors, module)

    def check(self) -> None:
        """Raise UsageError if the loss or a function of the module has changed the module."""
        if self._module is None:
            return
        parts = {name for name, _ in self._module.named_modules()}
        for change in self._state.changes():
            part, _, key = change.path.rpartition(".")
            part = part.removeprefix("_modules.").replace("._modules.", ".")
            part = part.removesuffix("_buffers").removesuffix("_parameters").rstrip(".")
            if part in parts or not of_tensors(change.now):
                where = f"{part}.{key}".lstrip(".")
                raise UsageError(
                    f"loss: or a hook changes {where} of the module that was given, by an assignment or by calling it, "
                    "while clients train copies; change buffers in forward through self, and give the loss what it "
                    "needs as an output or an attribute that forward computes"
                )


def of_tensors(value: object) -> bool:
    """Return True for a tensor, and for a container of tensors and plain values."""
    if isinstance(value, list | tuple):
        return all(isinstance(inner, PLAIN) or of_tensors(inner) for inner in value)
    if isinstance(value, dict):
        return all(isinstance(inner, PLAIN) or of_tensors(inner) for inner in value.values())
    return isinstance(value, Tensor)
