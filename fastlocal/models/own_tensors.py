"""Tensors of the user's module, wherever they are reached from, as those of the client that trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Held = Mapping[int, str]
"""{id of a tensor: its name in the module}. Whoever keeps it keeps the tensors alive."""


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module by every name that they have."""
    return {place.name: place.value for place in places_of(module)}


class Place(NamedTuple):
    """Where a module keeps a parameter or a buffer.

    name: of the tensor in the whole module        part: whose tensor it is
    kept: the part's parameters or its buffers, by key
    """

    name: str
    part: nn.Module
    kept: dict[str, Any]
    key: str
    value: Tensor


def places_of(module: nn.Module) -> Iterator[Place]:
    """Yield every place; a tensor that has several names is in several."""
    for path, part in module.named_modules():
        for kept in (part._parameters, part._buffers):
            for key, value in kept.items():
                if value is not None:
                    yield Place(f"{path}.{key}" if path else key, part, kept, key, value)


class OwnTensors(TorchFunctionMode):
    """Within, whatever torch is asked to compute with a tensor that is held is computed with the client's.

    A closure over the user's module, or a list of parameters that a module keeps, so means the parameters of the
    client, whose gradients they get.

    Attributes:
        used: Names of the tensors that were reached in this way.
        hooked: Whether a hook was put on the gradient of any tensor.
    """

    def __init__(self, held: Held, values: Mapping[str, Tensor]) -> None:
        """Begin.

        Args:
            held: The tensors to be replaced.
            values: The client's, by name; a tensor that is not among them stays as it is.
        """
        super().__init__()
        self._held, self._values = held, values
        self.used: set[str] = set()
        self.hooked = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.hooked |= func is Tensor.register_hook
        return func(*self._of(args), **self._of(kwargs or {}))

    def _of(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            name = self._held.get(id(value))
            if name is None or name not in self._values or self._values[name] is value:
                return value
            self.used.add(name)
            return self._values[name]
        if type(value) in (tuple, list):
            return type(value)(map(self._of, value))
        if type(value) is dict:
            return {key: self._of(inner) for key, inner in value.items()}
        return value
