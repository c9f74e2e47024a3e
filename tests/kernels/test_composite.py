"""Functions of torch that are made of others: attention, the mean over pixels, and RMSNorm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastlocal.kernels import functional
from tests.kernels.test_custom_ops import BATCH, CLIENTS, check_against_the_loop, loss_of, ours


class Seen(TorchDispatchMode):
    """The number of elements of the largest result, and the names of the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.names = 0, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        self.names.add(func.name())
        return result


class Attends(nn.Module):
    """The pixels of an image as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(2).transpose(1, 2))
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        x, weights = self.attention(x, x, x, attn_mask=mask, need_weights=True)
        return self.last(self.block(x).mean(1)) + weights.square().sum((1, 2))[:, None]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_attention_repeats_no_weights() -> None:
    torch.manual_seed(0)
    module = Attends().double()
    sequence, embedding, heads = 4 * 4, 8, 2
    with Seen() as seen:
        check_against_the_loop(module, loss_of(module, ours), size=4)
    assert seen.elements <= CLIENTS * BATCH * heads * sequence**2 < CLIENTS * sequence * 3 * embedding**2


class Pools(nn.Module):
    """The mean over the pixels of channels-last images."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.pool = nn.Linear(3, 8), nn.AdaptiveAvgPool2d((1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.linear(x.movedim(1, -1)).movedim(-1, 1)).flatten(1)


def test_a_mean_over_pixels_is_one_operation_for_all_clients() -> None:
    torch.manual_seed(0)
    module = Pools().double()
    run, seen = loss_of(module, ours), Seen()

    def watched(*given: Any) -> Tensor:
        with seen:
            return run(*given)

    check_against_the_loop(module, watched, size=6)
    assert "aten::mean.dim" in seen.names and "aten::as_strided_" not in seen.names


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("eps", [None, 1e-3])
def test_a_norm_without_a_mean_is_torchs(dtype: torch.dtype, eps: float | None) -> None:
    """A GPU's own has no rule for vmap, as it is one operation there."""
    torch.manual_seed(0)
    given = [torch.randn(CLIENTS, *shape, dtype=dtype).requires_grad_() for shape in ((BATCH, 5, 8), (8,))]

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (8,), weight, eps)

    with functional.StackedOps():
        stacked = torch.vmap(norm)(*given)
    looped = torch.stack([norm(*each) for each in zip(*given, strict=True)])
    torch.testing.assert_close(stacked, looped)
    for found, exact in zip(*(torch.autograd.grad(y.square().sum(), given) for y in (stacked, looped)), strict=True):
        torch.testing.assert_close(found, exact)
