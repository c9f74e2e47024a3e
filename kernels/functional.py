"""Convolution, linear maps, GroupNorm and BatchNorm that stay one stacked operation under vmap.

`conv2d`, `linear`, `group_norm` and `batch_norm` take the arguments of their namesakes in torch.nn.functional. Under
torch.vmap over stacked parameters they call conv2d_clients, one batched product and norm_act for all clients at once;
without vmap there is one client. `StackedOps` redirects torch's functions to them in any module:

    with StackedOps():
        losses = torch.vmap(forward_one)(params, images, targets)

Autograd must be outside vmap, as above: torch.func.grad inside does not support torch.library's operators.
torch.compile(fullgraph=True) accepts all of it. Arguments that torch rejects go to torch, for its error message.

`linear` is (weight @ input.T).T on a CPU, and torch's own elsewhere: under vmap either is one batched product. In this
form the gradient of the weight has the weight's layout, and 16 samples of 3072 values to 128 take 0.4 of the time on
one core (float32, MKL 2024.2). On a GPU this is not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .conv2d_clients.geometry import Geometry
from .conv2d_clients.operator import choose, conv2d_stacked
from .indexed import INDEX_FILLS, cross_entropy, embedding, one_hot, takes_labels, with_positive_indices
from .norm_act.operator import faster_than_torch, norm_act_stacked

Size = int | Sequence[int]


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
) -> Tensor:
    """torch.nn.functional.conv2d of one client; under autocast it computes in autocast's dtype, as torch.

    Args:
        input: [batch, in, h, w].
        weight: [out, in / groups, kh, kw].
        bias: [out] or None.
        strategy: Of `conv2d_stacked`; "grouped" calls torch's convolution, and vmap groups it.
    """
    window = _window(input, weight, bias, stride, padding, dilation, groups)
    if window is None:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)  # type: ignore[arg-type]
    input, weight, bias = _autocast(input, weight, bias)
    if padding == "same":
        spans = [step * (size - 1) for step, size in zip(window.dilation, weight.shape[2:], strict=True)]
        if any(span % 2 for span in spans):  # torch pads one side more than the other
            input = F.pad(input, (0, spans[1] % 2, 0, spans[0] % 2))
    stride, padding, dilation = window.stride, window.padding, window.dilation
    images, filters = input.unsqueeze(0), weight.unsqueeze(0)
    if strategy == "auto":
        strategy = choose(images, filters, window)
    if strategy == "grouped":  # aten's name, which an outer StackedOps does not redirect
        return torch.ops.aten.conv2d(input, weight, bias, stride, padding, dilation, groups)
    biases = None if bias is None else bias.unsqueeze(0)
    return conv2d_stacked(images, filters, biases, stride, padding, dilation, groups, strategy).squeeze(0)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear of one client: input [..., in], weight [out, in], bias [out] or None."""
    fits = weight.dim() == 2 and input.dim() > 1 and input.shape[-1] == weight.shape[1]
    if bias is not None:
        fits = fits and bias.shape == weight.shape[:1] and bias.dtype == weight.dtype
    if input.device.type != "cpu" or not fits:
        return F.linear(input, weight, bias)
    rows = torch.mm(weight, input.flatten(0, -2).t()).t().contiguous()
    output = rows.reshape(*input.shape[:-1], weight.shape[0])
    return output if bias is None else output + bias.to(output.dtype)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    backend: str = "auto",
) -> Tensor:
    """torch.nn.functional.group_norm of one client, with statistics in fp32 and a result in the input's dtype.

    Args:
        input: [batch, channels, ...].
        weight: [channels] or None.
        bias: [channels] or None.
        backend: Of `norm_act_stacked`; "auto" calls torch where that is faster.
    """
    ours = backend != "auto" or faster_than_torch(input)
    if not ours or num_groups < 1 or not _has_statistics(input, weight, bias, num_groups):
        return F.group_norm(_wide(input), num_groups, weight, bias, eps).to(input.dtype)
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
) -> Tensor:
    """torch.nn.functional.batch_norm of one client; with running statistics it is torch's own.

    Args:
        input: [batch, channels, ...].
        weight: [channels] or None.
        bias: [channels] or None.
        backend: Of `norm_act_stacked`; "auto" calls torch where that is faster.
    """
    has_running = running_mean is not None or running_var is not None
    ours = training and not has_running and (backend != "auto" or faster_than_torch(input))
    if not ours or not _has_statistics(input, weight, bias, 0):
        wide = _wide(input)
        return F.batch_norm(wide, running_mean, running_var, weight, bias, training, momentum, eps).to(input.dtype)
    return norm_act(input, weight, bias, groups=0, eps=eps, backend=backend)


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
    y, _, _ = norm_act_stacked(input.unsqueeze(0), *stacked, groups, eps, activation, backend)
    return y.squeeze(0)


class StackedOps(TorchFunctionMode):
    """Redirects torch.nn.functional's conv2d, linear and norms to this module; other norms compute in fp32.

    Functions whose vmap rule would read another client's row for an index out of range reject that index. "auto" leaves
    to torch what torch computes faster, for example small convolutions on a CPU.

    Args:
        strategy: Of the convolutions.
        norms: Backend of the norms.
    """

    def __init__(self, strategy: str = "auto", norms: str = "auto") -> None:
        super().__init__()
        self.strategy = strategy
        self.norms = norms

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.conv2d:
            return conv2d(*args, **kwargs, strategy=self.strategy)
        if func is F.linear:
            return linear(*args, **kwargs)
        if func is F.group_norm:
            return group_norm(*args, **kwargs, backend=self.norms)
        if func is F.batch_norm:
            return batch_norm(*args, **kwargs, backend=self.norms)
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


def _pair(size: Size) -> Sequence[int]:
    return (size, size) if isinstance(size, int) else (size[0], size[0]) if len(size) == 1 else size


def _window(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
) -> Geometry | None:
    """Return the geometry of the filters, without the one-sided padding of "same"; None if torch rejects them."""
    stride, dilation = _pair(stride), _pair(dilation)
    if not input.dim() == weight.dim() == 4 or not input.is_floating_point() or weight.numel() == 0:
        return None
    if not isinstance(padding, str):
        padding = _pair(padding)
    elif padding == "same":
        if any(step != 1 for step in stride):
            return None
        padding = [step * (size - 1) // 2 for step, size in zip(_pair(dilation), weight.shape[2:], strict=True)]
    elif padding == "valid":
        padding = (0, 0)
    else:
        return None
    if not len(stride) == len(padding) == len(dilation) == 2 or min(*stride, *dilation, groups) < 1 or min(padding) < 0:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    if not torch.is_autocast_enabled(input.device.type):
        if input.dtype != weight.dtype or bias is not None and input.dtype != bias.dtype:
            return None
    if input.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        return None
    window = Geometry.from_sequences(stride, padding, dilation, groups)
    image, kernel = (input.shape[2], input.shape[3]), (weight.shape[2], weight.shape[3])
    return window if min(window.output_size(image, kernel)) > 0 else None


def _has_statistics(input: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int) -> bool:
    """Return True if torch accepts the arguments of a norm in `groups` groups, or for 0 over the batch."""
    if input.dim() < 2 or input.shape[1] == 0 or not input.is_floating_point():
        return False
    channels = input.shape[1]
    if groups and (channels % groups or 0 in input.shape[2:]) or input.numel() == (groups or channels):
        return False
    return all(affine is None or affine.shape == (channels,) for affine in (weight, bias))


def _autocast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    device = input.device.type
    if not torch.is_autocast_enabled(device) or input.dtype == torch.float64:
        return input, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
