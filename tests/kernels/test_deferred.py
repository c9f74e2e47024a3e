"""Norms that wait for what follows them give what they give alone, however a module uses their results."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fastlocal.kernels.functional import StackedOps, settled
from tests.kernels.test_custom_ops import CLIENTS, clients_of, normal

Forward = Callable[["Layers", Tensor], Tensor]


class Layers(nn.Module):
    """A convolution, norms, and a forward function of them."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.other = nn.Conv2d(4, 4, 1, bias=False)
        self.batch = nn.BatchNorm2d(4, track_running_stats=False)
        self.batch2 = nn.BatchNorm2d(4, affine=False, track_running_stats=False)
        self.group = nn.GroupNorm(2, 4)
        self.seen: list[Tensor] = []
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def block(m: Layers, x: Tensor) -> Tensor:
    return F.relu(m.batch2(m.other(F.relu(m.batch(m.conv(x))))) + x)


def torchvision_block(m: Layers, x: Tensor) -> Tensor:
    """In place, with a shortcut that is a norm itself."""
    out = m.batch(m.conv(x))
    out = F.relu(out, inplace=True)
    out = m.batch2(m.other(out))
    out += m.group(x)
    return F.relu_(out)


def used_twice(m: Layers, x: Tensor) -> Tensor:
    y = m.conv(x)
    normal = m.batch(y)
    return F.relu(normal) * y + F.silu(normal + x) + normal


def changed_in_place(m: Layers, x: Tensor) -> Tensor:
    residual = x * 2
    total = m.group(x) + residual
    residual.zero_()  # the sum took it as it was
    later = x + 1
    normal = m.batch(x) + later
    later[0] = 0
    return F.silu(total) + F.relu(normal)


def changed_by_an_activation(m: Layers, x: Tensor) -> Tensor:
    normal = m.group(x)
    F.relu(normal, inplace=True)
    return normal * 2


def a_residual_that_changes_afterwards(m: Layers, x: Tensor) -> Tensor:
    """Whole, in part, through a view, and where nothing waits any more; torch's sum does not need it."""
    first, second, third = x * 2, x * 3, x * 4
    part = second[:, 1:]
    y = F.relu(m.batch(m.conv(x)) + first)
    first += y
    z = F.silu(m.group(first) + second)
    part.mul_(y[:, 1:])
    z = F.relu(m.batch2(z) + third)
    F.hardswish(third, inplace=True)
    return z + first + second + third


def other_activations(m: Layers, x: Tensor) -> Tensor:
    """In place, of norms and of a convolution, whose results are used again under both names."""
    y = m.batch(m.conv(x))
    z = F.celu(y, inplace=True)
    w = m.other(z)
    F.hardtanh(w, -1.0, 6.0, True)
    v = m.group(w)
    u = v[:, :2]
    F.elu(v, inplace=True)
    return F.adaptive_avg_pool2d(y, 1) * z + F.leaky_relu(m.batch2(x), 0.1, inplace=True) + w * v + u.sum()


def of_mobile_nets(m: Layers, x: Tensor) -> Tensor:
    """Activations given as modules and in place are fused too; nn.ReLU6 calls hardtanh."""
    y = nn.ReLU6(inplace=True)(m.batch(m.conv(x)) * 1 + 0)
    y = nn.ReLU6(inplace=True)(m.batch2(m.conv(x))) + y
    z = nn.Hardswish(inplace=True)(m.group(x) + x)
    w = m.group(z)
    return y + F.hardswish(w, True) + F.relu6(m.batch(x)) + w


def kept(m: Layers, x: Tensor) -> Tensor:
    """A deferred value is read after the forward pass."""
    m.seen = [m.batch(m.conv(x))]
    return m.group(x)


def of_other_kinds(m: Layers, x: Tensor) -> Tensor:
    y = m.group(m.batch(m.conv(x)))
    y = torch.add(y, x, alpha=2) + 1
    y = m.group(y) + x[:, :1]
    return F.max_pool2d(m.batch(y).relu(), 2) + F.gelu(m.group(x)).mean() + m.batch(x).shape[0]


FORWARDS: dict[Forward, dict[str, int]] = {
    block: {"convolution + BatchNorm + relu": 1, "convolution + BatchNorm + residual + relu": 1},
    torchvision_block: {"convolution + BatchNorm + relu": 1, "convolution + BatchNorm + residual + relu": 1},
    used_twice: {
        "convolution + BatchNorm + relu": 1,
        "convolution + BatchNorm + residual + silu": 1,
        "convolution + BatchNorm": 1,
    },
    changed_in_place: {},
    changed_by_an_activation: {"GroupNorm + relu": 1},
    a_residual_that_changes_afterwards: {
        "convolution + BatchNorm + residual + relu": 1,
        "GroupNorm + residual + silu": 1,
        "BatchNorm + residual + relu": 1,
    },
    other_activations: {"convolution + BatchNorm": 1},
    of_mobile_nets: {
        "convolution + BatchNorm": 1,
        "convolution + BatchNorm + relu6": 1,
        "GroupNorm + residual + hardswish": 1,
        "GroupNorm + hardswish": 1,
        "BatchNorm + relu6": 1,
    },
    kept: {"convolution + BatchNorm": 1},
    of_other_kinds: {"convolution + BatchNorm": 1, "BatchNorm + relu": 1},
}


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda forward: forward.__name__)
def test_what_waits_is_what_it_would_have_been(forward: Forward) -> None:
    """Fused and unfused operations for all clients at once give the results of torch's for each client."""
    torch.manual_seed(0)
    module = Layers(forward).double()
    images = normal(CLIENTS, 2, 4, 6, 6)
    found = []
    modes = [StackedOps("loop", norms="reference", fuse=True), StackedOps("loop", norms="reference", fuse=False)]
    for mode in (*modes, nullcontext()):
        params = clients_of(module)

        def one(values: dict[str, Tensor], x: Tensor) -> tuple[Tensor, list[Tensor]]:
            result = functional_call(module, values, (x,))
            return settled((result, module.seen))

        with mode:
            result, seen = vmap(one)(params, images)
        weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view(result.shape)
        loss = (result * weights).sum() + sum(each.square().sum() for each in seen)
        inputs = [images, *params.values()]
        grads = torch.autograd.grad(loss, inputs, materialize_grads=True, allow_unused=True)
        found.append([result, *seen, *grads])
    assert [mode.deferred.fused for mode in modes] == [FORWARDS[forward], {}]
    for together, apart, torchs in zip(*found, strict=True):
        torch.testing.assert_close(together, torchs, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(apart, torchs, rtol=1e-12, atol=1e-12)


def test_a_use_that_no_mode_sees_fails_instead_of_reading_nothing() -> None:
    norm, x = nn.GroupNorm(2, 4).double(), normal(2, 4, 3, 3)
    with StackedOps(norms="reference", fuse=True):
        y = norm(x)
    with pytest.raises(RuntimeError, match="meta"):
        y + x
