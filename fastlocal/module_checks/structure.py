"""Checks of the user's module without running it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..common.errors import UsageError, one_line
from ..models.own_tensors import tensors_of

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def copy_model(module: Any) -> nn.Module:
    """Return a copy of the user's module for the training.

    Raises:
        UsageError: The module cannot be copied or trained; the message names a remedy.
    """
    check_model(module)
    memo: dict[int, Any] = {}
    with torch.no_grad():
        try:
            copied: nn.Module = copy.deepcopy(module, memo)
        except Exception as error:
            raise UsageError(_copy_fault(module, error)) from error
    check_model(copied)
    shared = {id(value) for value in module.parameters()} & {id(value) for value in copied.parameters()}
    if copied is module or shared:
        raise UsageError("model: its __deepcopy__ gives the same parameters again; every client needs its own")
    _refuse_views(module, [value for value in memo.get(id(memo), ()) if isinstance(value, Tensor)])
    return copied


def check_model(module: Any) -> None:
    """Raise UsageError if `module` is not an nn.Module, or one that clients cannot train."""
    if isinstance(module, type) and issubclass(module, nn.Module):
        raise UsageError(f"model: is the class {module.__name__}; give an instance, {module.__name__}(...)")
    if not isinstance(module, nn.Module):
        raise UsageError(f"model: is {type(module).__name__}, not an nn.Module")
    if isinstance(module, WRAPPERS):
        raise UsageError(f"model: is {type(module).__name__}, which splits batches itself; give its .module")
    for path, part in module.named_modules():
        where = f"its part {path}" if path else "it"
        if isinstance(part, torch.jit.ScriptModule | torch.jit.ScriptFunction):
            raise UsageError(f"model: {where} is of torch.jit, which takes no other parameters; give the plain module")
        if isinstance(part, WRAPPERS):
            raise UsageError(f"model: {where} is {type(part).__name__}; give its .module in its place")
    tensors = tensors_of(module)
    named = {id(value) for _, value in module.named_parameters()} & {id(value) for value in module.parameters()}
    for name, value in tensors.items():
        if isinstance(value, nn.Parameter) and value.requires_grad and id(value) not in named:
            raise UsageError(
                f"model: its parameters() and named_parameters() leave out {name}; give all parameters, and set "
                "requires_grad to False for those that are not trained"
            )
        _check_tensor(name, value)
    _refuse_overlaps(module)


def _check_tensor(name: str, value: Tensor) -> None:
    if nn.parameter.is_lazy(value):
        raise UsageError(f"model: {name} has no shape yet; run one batch through the model first")
    if value.is_meta:
        raise UsageError(f"model: {name} is on the device meta and has no values; give it some (to_empty and a load)")
    if not isinstance(value, nn.Parameter) or not value.requires_grad:
        return
    if not value.is_floating_point():
        raise UsageError(
            f"model: {name} is {str(value.dtype).removeprefix('torch.')}; only real floating parameters are trained: "
            "keep a real and an imaginary one, and view_as_complex in forward"
        )
    if value.layout != torch.strided:
        raise UsageError(f"model: {name} is a sparse tensor; only dense parameters are trained")
    if type(value) is not nn.Parameter and type(value).__torch_function__ is not torch._C._disabled_torch_function_impl:
        raise UsageError(f"model: {name} is {type(value).__name__}, a kind of its own; give a plain nn.Parameter")
    if value._backward_hooks or getattr(value, "_post_accumulate_grad_hooks", None):
        raise UsageError(
            f"model: {name} has a hook on its gradient, which clients side by side would not call as it is meant; do "
            "the same in forward, by a torch.autograd.Function for example"
        )


def _refuse_overlaps(module: nn.Module) -> None:
    """Raise UsageError if two parameters share memory, which a step would change twice; tied ones are one Parameter."""
    spans: list[tuple[int, int, str, Tensor]] = []
    for name, value in module.named_parameters():
        if value.numel() and not value.is_meta:
            begin, end = _span(value)
            spans.append((begin, end, name, value))
    spans.sort(key=lambda span: span[:2])
    for (_, end, first, one), (begin, _, second, other) in zip(spans, spans[1:], strict=False):
        if begin < end and (one.requires_grad or other.requires_grad):
            raise UsageError(f"model: {first} and {second} share memory; assign one Parameter to both names instead")


def _refuse_views(module: nn.Module, reached: list[Tensor]) -> None:
    """Raise UsageError if another tensor shares a parameter's memory; in the copies it would keep the start values."""
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad and value.numel()}
    own = {id(value) for value in module.parameters()}
    spans = [(*_span(value), name) for name, value in trained.items()]
    for value in reached:
        if id(value) in own or not value.numel() or value.is_meta or value.layout != torch.strided:
            continue
        for name in _overlapping(value, spans):
            raise UsageError(
                f"model: {_name_of(module, value)} shares the memory of the parameter {name}, whose steps it would not "
                "follow; compute it from the parameter in forward"
            )


def refuse_aliases(holder: str, tensors: Iterable[tuple[str, Tensor | np.ndarray]], module: nn.Module) -> None:
    """Raise UsageError if a tensor or array shares a parameter's memory, which no step changes in the original.

    Args:
        holder: Owner of the tensors, for messages: "loss" or "model".
        tensors: (path, tensor or array) of each.
        module: The user's module.
    """
    own = {id(value) for value in (*module.parameters(), *module.buffers())}
    spans = [(*_span(value), name) for name, value in module.named_parameters() if value.numel() and not value.is_meta]
    for path, value in tensors:
        if id(value) in own or not _lies_in_memory(value):
            continue
        for name in _overlapping(value, spans):
            raise UsageError(
                f"{holder}: what it holds in {path} shares the memory of the parameter {name}, whose steps it would "
                "not follow, as clients train copies; hold the parameter itself, and detach it at each call"
            )


def _overlapping(value: Tensor | np.ndarray, spans: Iterable[tuple[int, int, str]]) -> Iterator[str]:
    """Yield the names of the spans (first address, address after the last, name) that share memory with a value."""
    begin, end = _span(value)
    for low, high, name in spans:
        if begin < high and low < end:
            yield name


def _lies_in_memory(value: Tensor | np.ndarray) -> bool:
    if isinstance(value, Tensor):
        return bool(value.numel()) and not value.is_meta and value.layout == torch.strided
    return bool(value.size)


def _span(value: Tensor | np.ndarray) -> tuple[int, int]:
    """Return the first address of a tensor and the address after its last element."""
    if isinstance(value, Tensor):
        begin, size = value.data_ptr(), value.element_size()
        strides = [stride * size for stride in value.stride()]
    else:
        begin, size, strides = value.ctypes.data, value.itemsize, list(value.strides)
    reach = [(length - 1) * stride for length, stride in zip(value.shape, strides, strict=True)]
    return begin + sum(min(each, 0) for each in reach), begin + sum(max(each, 0) for each in reach) + size


def _name_of(module: nn.Module, tensor: Tensor) -> str:
    for name, value in tensors_of(module).items():
        if value is tensor:
            return f"the buffer {name}"
    for path, key, value in _attributes(module):
        if value is tensor or (isinstance(value, list | tuple) and any(inner is tensor for inner in value)):
            return f"the attribute {f'{path}.{key}'.lstrip('.')}"
    return "a tensor that it keeps"


def _attributes(module: nn.Module) -> Iterator[tuple[str, str, Any]]:
    for path, part in module.named_modules():
        for key, value in vars(part).items():
            if key not in ("_parameters", "_buffers", "_modules"):
                yield path, key, value


def _copy_fault(module: nn.Module, error: Exception) -> str:
    """Return why a module cannot be copied, and a remedy."""
    for path, key, value in _attributes(module):
        try:
            copy.deepcopy(value)
        except Exception as own:
            name = f"{path}.{key}".lstrip(".")
            if not isinstance(value, Tensor):
                remedy = "make it in forward, or give its class a __deepcopy__"
                return f"model: its attribute {name} cannot be copied ({one_line(own, 160)}); {remedy}"
            hooks = module.get_submodule(path)._forward_pre_hooks.values()
            remedy = "keep its .detach(), or set it to None before"
            if any(type(hook).__name__ == "WeightNorm" for hook in hooks):
                remedy = "use torch.nn.utils.parametrizations.weight_norm in place of torch.nn.utils.weight_norm"
            return f"model: its attribute {name} is a result that autograd follows, which no copy can hold; {remedy}"
    return f"model: cannot be copied, as every client needs its own ({one_line(error, 160)})"
