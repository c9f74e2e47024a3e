"""Convolution, GroupNorm and BatchNorm that stay one stacked operation under vmap.

`conv2d`, `group_norm` and `batch_norm` take the arguments of their namesakes in torch.nn.functional. Under torch.vmap
over stacked parameters they reach conv2d_clients and norm_act, all clients at once; without vmap there is one client.
`StackedOps` redirects torch's functions to them in whatever a module calls:

    with StackedOps():
        losses = torch.vmap(forward_one)(params, images, targets)

Autograd goes around vmap, as above: torch.func.grad inside it does not know torch.library's operators.
torch.compile(fullgraph=True) accepts the whole.
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
from .norm_act.operator import norm_act_stacked, worthwhile

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
    """torch.nn.functional.conv2d of one client. Under autocast it computes in autocast's dtype, as torch's does.

    input: [batch, in, h, w]        weight: [out, in / groups, kh, kw]        bias: [out] or None
    strategy: of `conv2d_stacked`; the grouped one is left to torch, whose vmap makes it
    """
    if input.dim() != 4 or not input.is_floating_point():
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)  # type: ignore[arg-type]
    input, weight, bias = _autocast(input, weight, bias)
    dilation = _pair(dilation)
    if isinstance(padding, str):
        spans = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
        if padding == "same" and any(span % 2 for span in spans):  # torch pads one side more
            input = F.pad(input, (0, spans[1] % 2, 0, spans[0] % 2))
        padding = [span // 2 for span in spans] if padding == "same" else (0, 0)
    stride, padding = _pair(stride), _pair(padding)
    images, filters = input.unsqueeze(0), weight.unsqueeze(0)
    if strategy == "auto":
        strategy = choose(images, filters, Geometry.of(stride, padding, dilation, groups))
    if strategy == "grouped":  # by aten's name, which no StackedOps around this one redirects
        return torch.ops.aten.conv2d(input, weight, bias, stride, padding, dilation, groups)
    biases = None if bias is None else bias.unsqueeze(0)
    return conv2d_stacked(images, filters, biases, stride, padding, dilation, groups, strategy).squeeze(0)


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

    input: [batch, channels, ...]        weight, bias: [channels] or None
    backend: of `norm_act_stacked`; "auto" leaves it to torch where that is faster
    """
    if backend == "auto" and not worthwhile(input):
        return F.group_norm(input, num_groups, weight, bias, eps)
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
    """torch.nn.functional.batch_norm of one client; with running statistics, to use or to update, torch's own.

    input: [batch, channels, ...]        weight, bias: [channels] or None
    backend: of `norm_act_stacked`; "auto" leaves it to torch where that is faster
    """
    given = running_mean is not None or running_var is not None
    if not training or given or backend == "auto" and not worthwhile(input):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return norm_act(input, weight, bias, groups=0, eps=eps, backend=backend)


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
    """activation(norm(input) * weight + bias + residual) of one client, in one operation.

    input, residual: [batch, channels, ...]        weight, bias: [channels] or None
    groups: of GroupNorm; 0 is BatchNorm with the batch's statistics        activation: "none", "relu" or "silu"
    backend: of `norm_act_stacked`
    """
    stacked = (None if given is None else given.unsqueeze(0) for given in (weight, bias, residual))
    y, _, _ = norm_act_stacked(input.unsqueeze(0), *stacked, groups, eps, activation, backend)
    return y.squeeze(0)


class StackedOps(TorchFunctionMode):
    """Within, torch.nn.functional's conv2d, group_norm and batch_norm are those of this module.

    strategy: of the convolutions        norms: backend of the norms
    Of both, "auto" leaves to torch what it computes faster, and so does nothing to small convolutions on a CPU.
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
        if func is F.group_norm:
            return group_norm(*args, **kwargs, backend=self.norms)
        if func is F.batch_norm:
            return batch_norm(*args, **kwargs, backend=self.norms)
        return func(*args, **kwargs)


def _pair(size: Size) -> Sequence[int]:
    return (size, size) if isinstance(size, int) else size if len(size) == 2 else (size[0], size[0])


def _autocast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    device = input.device.type
    if not torch.is_autocast_enabled(device) or input.dtype == torch.float64:
        return input, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
