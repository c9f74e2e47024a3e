"""Reject modules whose trace would freeze values that change between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READERS = (Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__)
"""Methods that pass values to Python unnoticed by make_fx."""
PERTURBATION = 0.1
"""Standard deviation of `perturbed` noise, relative to the root mean square of the parameters."""
_OWN = ("_parameters", "_buffers", "_modules")


def perturbed(row: Tensor) -> Tensor:
    """Return parameters [n_params] with noise that is the same at every call."""
    noise = torch.randn(row.shape, generator=torch.Generator().manual_seed(0), dtype=row.dtype)
    return row + PERTURBATION * row.square().mean().sqrt() * noise


def check_forward(
    module: nn.Module, forward: Callable[[Sequence[Tensor], Tensor, Tensor], object], *steps: tuple[Any, ...]
) -> None:
    """Check that `forward` is the same sequence of operations in every step.

    Args:
        module: The module.
        forward: Forward pass from (parameters, inputs, targets).
        steps: Arguments of several forward passes.

    Raises:
        RuntimeError: The operations differ, Python reads values of tensors, or attributes of the module change.
    """
    calls: list[list[str]] = []
    before: dict[tuple[str, str], tuple[Any, Any]] = {}
    for step in steps:
        before = _attributes(module)  # compare the last step only: the first one may initialize attributes
        with _RefuseReaders(), _Recorder() as recorder, torch.no_grad():
            forward(*step)
        calls.append(recorder.calls)
    if any(other != calls[0] for other in calls[1:]):
        raise RuntimeError("what it computes depends on values")
    after = _attributes(module)
    for place in {*before, *after}:
        old, new = before.get(place), after.get(place)
        if old is None or new is None or old[0] is not new[0] or old[1] != new[1]:
            raise RuntimeError(f"its attribute {'.'.join(filter(None, place))} changes")


def check_shapes(calls: Iterable[fx.Node]) -> None:
    """Raise RuntimeError if the shape of a result depends on values."""
    for node in calls:
        target: Any = node.target
        if torch.Tag.dynamic_output_shape not in getattr(target, "tags", ()):
            continue
        if target is torch.ops.aten.index.Tensor and not any(map(_is_mask, node.args[1])):  # type: ignore[arg-type]
            continue
        raise RuntimeError(f"values decide how large the result of {target} is")


class _RefuseReaders(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READERS:
            raise RuntimeError(f"it reads values by Tensor.{func.__name__}")
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    """Record operations with their arguments, without the values of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(f"{func} {_describe(args)} {_describe(kwargs)}")
        return func(*args, **(kwargs or {}))


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_describe, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_describe(inner)}' for key, inner in value.items())}}}"
    return repr(value)


def _attributes(module: nn.Module) -> dict[tuple[str, str], tuple[Any, Any]]:
    """Return {(path of the part, attribute): (object, version of a tensor)}."""
    return {
        (path, key): (value, value._version if isinstance(value, Tensor) else None)
        for path, part in module.named_modules()
        for key, value in vars(part).items()
        if key not in _OWN
    }


def _is_mask(index: Any) -> bool:
    return index is not None and index.meta["tensor_meta"].dtype in (torch.bool, torch.uint8)
