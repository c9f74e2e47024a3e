"""Replace tensors of the user's module, wherever code refers to them, by the tensors of the current client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

TensorNames = Mapping[int, str]
"""{id of a tensor: its name in the module}; the owner must keep the tensors alive."""


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module under all their names."""
    return {place.name: place.value for place in places_of(module)}


class Place(NamedTuple):
    """Location of a parameter or a buffer in a module.

    Attributes:
        name: Name of the tensor in the whole module.
        part: The part that owns the tensor.
        tensors: The part's dictionary of parameters or of buffers.
        key: Key of the tensor in `tensors`.
        value: The tensor.
    """

    name: str
    part: nn.Module
    tensors: dict[str, Any]
    key: str
    value: Tensor


def places_of(module: nn.Module) -> Iterator[Place]:
    """Yield all places; a tensor with several names has several."""
    for path, part in module.named_modules():
        for tensors in (part._parameters, part._buffers):
            for key, value in tensors.items():
                if value is not None:
                    yield Place(f"{path}.{key}" if path else key, part, tensors, key, value)


class OwnTensors(TorchFunctionMode):
    """Replace tensors of the user's module in the arguments of every torch function within the block.

    A closure over the user's module, or a list of parameters in a module, thus uses the client's parameters, and their
    gradients go to the client.

    Attributes:
        used: Names of the replaced tensors.
        hooked: Whether a hook was registered on the gradient of a tensor.
    """

    def __init__(self, tensor_names: TensorNames, values: Mapping[str, Tensor]) -> None:
        """Set the replacements.

        Args:
            tensor_names: The tensors to replace.
            values: The client's tensors by name; tensors without an entry are not replaced.
        """
        super().__init__()
        self._tensor_names, self._values = tensor_names, values
        self.used: set[str] = set()
        self.hooked = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.hooked |= func is Tensor.register_hook
        return func(*self._replace(args), **self._replace(kwargs or {}))

    def _replace(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            name = self._tensor_names.get(id(value))
            if name is None or name not in self._values or self._values[name] is value:
                return value
            self.used.add(name)
            return self._values[name]
        if type(value) in (tuple, list):
            return type(value)(map(self._replace, value))
        if type(value) is dict:
            return {key: self._replace(inner) for key, inner in value.items()}
        return value
