"""Convolution, linear maps, GroupNorm and BatchNorm that stay one stacked operation under vmap.

`conv2d`, `linear`, `group_norm` and `batch_norm` take the arguments of their namesakes in torch.nn.functional. Under
torch.vmap over stacked parameters they call conv2d_clients, one batched product and norm_act for all clients at once;
without vmap there is one client. `StackedOps` redirects torch's functions to them in any module:

    with StackedOps():
        losses = torch.vmap(forward_one)(params, images, targets)

Autograd must be outside vmap, as above: torch.func.grad inside does not support torch.library's operators.
torch.compile(fullgraph=True) accepts all of it. Arguments that torch rejects go to torch, for its error message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from .accepted import Size, autocast, geometry_of, has_statistics
from .attention import scaled_dot_product_attention
from .composite import is_mean_of_pixels, opened, rms_norm
from .conv2d_clients.operator import choose, conv2d_stacked
from .copy_on_write import copy_before, elsewhere
from .deferred import SIZES, Convolution, Deferred, Norm
from .indexed import INDEX_FILLS, cross_entropy, embedding, one_hot, takes_labels, with_positive_indices
from .linear import linear
from .norm_act.operator import faster_than_torch, norm_act_stacked
from .stacking import only


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    strategy: str = "auto",
    deferred: Deferred | None = None,
) -> Tensor:
    """torch.nn.functional.conv2d of one client; under autocast it computes in autocast's dtype, as torch.

    Args:
        input: [batch, in, h, w].
        weight: [out, in / groups, kh, kw].
        bias: [out] or None.
        strategy: Of `conv2d_stacked`; "grouped" calls torch's convolution, and vmap groups it.
        deferred: Makes the result wait for its use, or None.
    """
    window = geometry_of(input, weight, bias, stride, padding, dilation, groups)
    if window is None:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)  # type: ignore[arg-type]
    taken, (input, bias) = input, autocast(input, bias)
    if padding == "same":
        spans = [step * (size - 1) for step, size in zip(window.dilation, weight.shape[2:], strict=True)]
        if any(span % 2 for span in spans):  # torch pads one side more than the other
            input = F.pad(input, (0, spans[1] % 2, 0, spans[0] % 2))
    stride, padding, dilation = window.stride, window.padding, window.dilation
    images = input.unsqueeze(0)
    if strategy == "auto":
        strategy = choose(images, weight.unsqueeze(0), window)
    if strategy != "triton":  # which casts while it packs the filters, and whose gradient keeps their dtype
        (weight,) = autocast(weight)
    if strategy == "grouped":  # aten's name, which an outer StackedOps does not redirect
        return torch.ops.aten.conv2d(input, weight, bias, stride, padding, dilation, groups)
    filters, biases = weight.unsqueeze(0), None if bias is None else bias.unsqueeze(0)
    arguments = (images, filters, biases, stride, padding, dilation, groups, strategy)
    if deferred is not None:
        shape = torch.Size(window.check(images, filters)[1:])
        same = taken if input is taken else None
        return deferred.stand_in(Convolution(same, shape, arguments, deferred.forks))
    return only(conv2d_stacked(*arguments))


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    backend: str = "auto",
    deferred: Deferred | None = None,
) -> Tensor:
    """torch.nn.functional.group_norm of one client, with statistics in fp32 and a result in the input's dtype.

    Args:
        input: [batch, channels, ...].
        weight: [channels] or None.
        bias: [channels] or None.
        backend: Of `norm_act_stacked`; "auto" calls torch where that is faster.
        deferred: Makes the result wait for its use, or None.
    """
    source = _source(input, deferred)
    ours = backend != "auto" or faster_than_torch(_images(source))
    if not ours or num_groups < 1 or not has_statistics(input, weight, bias, num_groups):
        value = _value(source)
        return F.group_norm(_wide(value), num_groups, weight, bias, eps).to(value.dtype)
    if deferred is not None:
        return deferred.stand_in(Norm(source, (weight, bias), (num_groups, eps, backend), deferred))
    return norm_act(input, weight, bias, groups=num_groups, eps=eps, backend=backend)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    backend: str = "auto",
    deferred: Deferred | None = None,
) -> Tensor:
    """torch.nn.functional.batch_norm of one client; with running statistics it is torch's own.

    Args:
        input: [batch, channels, ...].
        weight: [channels] or None.
        bias: [channels] or None.
        backend: Of `norm_act_stacked`; "auto" calls torch where that is faster.
        deferred: Makes the result wait for its use, or None.
    """
    source = _source(input, deferred)
    has_running = running_mean is not None or running_var is not None
    ours = training and not has_running
    ours = ours and (backend != "auto" or faster_than_torch(_images(source)))
    if not ours or not has_statistics(input, weight, bias, 0):
        value = _value(source)
        wide = _wide(value)
        return F.batch_norm(wide, running_mean, running_var, weight, bias, training, momentum, eps).to(value.dtype)
    if deferred is not None:
        return deferred.stand_in(Norm(source, (weight, bias), (0, eps, backend), deferred))
    return norm_act(input, weight, bias, groups=0, eps=eps, backend=backend)


def _source(input: Tensor, deferred: Deferred | None) -> Tensor | Convolution:
    """Return the convolution behind a norm's input if it waits, else the input's value."""
    node = None if deferred is None else deferred.node(input)
    return input if node is None else node if isinstance(node, Convolution) else node.value()


def _images(source: Tensor | Convolution) -> Tensor:
    """Return a tensor on the device and in the dtype of a norm's input."""
    images: Tensor = source.arguments[0] if isinstance(source, Convolution) else source
    return images


def _value(source: Tensor | Convolution) -> Tensor:
    return source.value() if isinstance(source, Convolution) else source


def _wide(input: Tensor) -> Tensor:
    """Cast 16-bit inputs to fp32: under vmap, torch keeps a bf16 input's statistics in bf16 and returns fp32."""
    return input.float() if input.dtype in (torch.bfloat16, torch.float16) else input


def norm_act(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    groups: int,
    eps: float = 1e-5,
    activation: str = "none",
    backend: str = "auto",
) -> Tensor:
    """Compute activation(norm(input) * weight + bias + residual) of one client, see `norm_act_stacked`."""
    stacked = (None if tensor is None else tensor.unsqueeze(0) for tensor in (weight, bias, residual))
    y, _, _ = norm_act_stacked(input.unsqueeze(0), *stacked, groups, eps, activation, backend, None, None)
    return only(y)


class StackedOps(TorchFunctionMode):
    """Redirects torch.nn.functional's conv2d, linear and norms to this module; other norms compute in fp32.

    Functions whose vmap rule would read another client's row for an index out of range reject that index. "auto" leaves
    to torch what torch computes faster, for example small convolutions on a CPU.

    Where Triton runs, a norm waits for the addition and the activation that follow, and a convolution for its norm: see
    `Deferred`. Whatever leaves the block goes through `settled` first.

    Args:
        strategy: Of the convolutions.
        norms: Backend of the norms.
        fuse: Whether norms and convolutions wait; None: where Triton runs.
    """

    def __init__(self, strategy: str = "auto", norms: str = "auto", fuse: bool | None = None) -> None:
        super().__init__()
        self.strategy = strategy
        self.norms = norms
        self.fuse = fuse
        self.deferred = Deferred()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not len(self.deferred):
            copy_before(func, args, kwargs)
            return self._call(func, args, kwargs)
        if func in SIZES:
            return func(*args, **kwargs)
        fused = self.deferred.call(func, args, kwargs)
        if fused is not None:
            return fused
        plain = elsewhere(func, args, kwargs) if args and self.deferred.waits(args[0]) else None
        if plain is not None:
            result = self.__torch_function__(func, types, *plain)
            self.deferred.replace(args[0], result)
            return result
        if func in (F.group_norm, F.batch_norm):
            rest = self.deferred.settled((args[1:], {key: kwargs[key] for key in kwargs if key != "input"}))
            return self._call(func, (*args[:1], *rest[0]), {**kwargs, **rest[1]})
        args, kwargs = self.deferred.settled((args, kwargs))
        if func is not F.conv2d:
            self.deferred.settle_before(func, args, kwargs)
        return self._call(func, args, kwargs)

    def _deferred(self, tensor: Tensor) -> Deferred | None:
        """Return where the result of a call waits, or None for calls that are made at once."""
        if self.fuse is None and not torch.compiler.is_compiling():
            return self.deferred if faster_than_torch(_images(_source(tensor, self.deferred))) else None
        return self.deferred if self.fuse else None

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is F.conv2d:
            return conv2d(*args, **kwargs, strategy=self.strategy, deferred=self._deferred(_first(args, kwargs)))
        if func is F.linear:
            return linear(*args, **kwargs)
        if func in (F.group_norm, F.batch_norm):
            norm = group_norm if func is F.group_norm else batch_norm
            return norm(*args, **kwargs, backend=self.norms, deferred=self._deferred(_first(args, kwargs)))
        if func is F.adaptive_avg_pool2d and is_mean_of_pixels(*args, **kwargs):
            return _first(args, kwargs).mean((-2, -1), keepdim=True)
        if func is F.multi_head_attention_forward and not torch.compiler.is_compiling():
            with self:
                return opened(func)(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return scaled_dot_product_attention(*args, **kwargs)
        if func is F.rms_norm:
            return rms_norm(*args, **kwargs)
        if func is F.embedding:
            return embedding(*args, **kwargs)
        if func is F.one_hot:
            return one_hot(*args, **kwargs)
        if func is F.cross_entropy and takes_labels(*args, **kwargs):
            return cross_entropy(*args, **kwargs)
        if func in INDEX_FILLS:
            return func(*with_positive_indices(*args, **kwargs))
        if func in (F.layer_norm, F.instance_norm):
            input, *rest = args
            return func(_wide(input), *rest, **kwargs).to(input.dtype)
        return func(*args, **kwargs)


def settled(values: Any) -> Any:
    """Return a tree of values in which nothing waits any more; within StackedOps what leaves it goes through here."""
    return values if torch.compiler.is_compiling() else tree_map_only(Tensor, _settled, values)


def _settled(value: Tensor) -> Tensor:
    if torch.overrides._get_current_function_mode() is None:
        return value
    result: Tensor = torch.overrides.handle_torch_function(_settled, (value,), value)
    return result


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    first: Tensor = args[0] if args else kwargs["input"]
    return first
