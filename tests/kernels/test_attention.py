"""Attention of all clients: one call of torch's own, with the results and gradients of a loop over clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from fastlocal.kernels.functional import StackedOps

CLIENTS = 3
pytestmark = pytest.mark.filterwarnings("error:There is a performance drop")


class Calls(TorchDispatchMode):
    """Batch sizes of the calls of torch's fused attention, and the number of all other products and softmaxes."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in func.name():
            self.batches.append(args[0].shape[0])
        self.products += func.name() in ("aten::bmm", "aten::_softmax")
        return func(*args, **(kwargs or {}))


def normal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def seen(*shape: int) -> Tensor:
    """A mask with a place that sees nothing."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[..., 2, :] = False
    return mask


HEADS = ((4, 2, 5, 6),) * 3
CASES: dict[str, tuple[tuple[tuple[int, ...], ...], Tensor | None, bool, dict[str, Any]]] = {
    "causal": (HEADS, None, False, {"is_causal": True}),
    "scale": (HEADS, None, False, {"scale": 0.3}),
    "other keys": (((4, 2, 5, 6), (4, 2, 7, 6), (4, 2, 7, 3)), None, False, {}),
    "groups of heads": (((4, 4, 5, 6), (4, 2, 5, 6), (4, 2, 5, 6)), None, False, {"enable_gqa": True}),
    "mask of all": (HEADS, seen(5, 5), False, {}),
    "mask of each head": (HEADS, normal(1, 2, 5, 5).detach(), False, {}),
    "mask of each sample": (HEADS, seen(4, 1, 5, 5), False, {}),
    "mask of each client": (HEADS, normal(CLIENTS, 5, 5), True, {}),
    "mask of each client's samples": (HEADS, normal(CLIENTS, 4, 2, 5, 5), True, {}),
    "without heads": (((4, 5, 6),) * 3, seen(5, 5), False, {}),
    "without a batch": (((5, 6),) * 3, None, False, {"is_causal": True}),
    "one key for all samples": (((4, 4, 5, 6), (1, 4, 5, 6), (1, 4, 5, 6)), None, False, {}),
}
"""Shapes for one client, a mask, whether each client has its own, and options."""


@pytest.mark.parametrize("name", CASES)
def test_as_a_loop_over_clients(name: str) -> None:
    shapes, mask, own, options = CASES[name]
    given = [normal(CLIENTS, *shape) for shape in shapes]

    def one(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)

    with StackedOps():
        stacked = vmap(one, (0, 0, 0, 0 if own else None))(*given, mask)
    masks = [mask] * CLIENTS if mask is None or not own else list(mask)
    looped = torch.stack([one(*client) for client in zip(*given, masks, strict=True)])
    torch.testing.assert_close(stacked, looped, rtol=0, atol=1e-12)
    leaves = [*given, *([mask] if mask is not None and mask.requires_grad else [])]
    weights = torch.rand_like(looped)
    results = (torch.autograd.grad((y * weights).sum(), leaves) for y in (stacked, looped))
    for found, exact in zip(*results, strict=True):
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


def test_one_call_serves_all_clients() -> None:
    given = [normal(CLIENTS, 4, 2, 5, 6) for _ in range(3)]
    with Calls() as calls, StackedOps():
        causal: Callable[..., Tensor] = lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True)  # noqa: E731
        vmap(causal)(*given).sum().backward()
        assert calls.batches == [CLIENTS * 4] * 2  # forward and backward
        calls.batches.clear()
        nested = [normal(2, CLIENTS, 4, 2, 5, 6) for _ in range(3)]
        vmap(vmap(causal))(*nested)
        vmap(causal, (0, None, 2))(given[0], given[1][0], given[2].movedim(0, 2))
    assert calls.batches == [2 * CLIENTS * 4, CLIENTS * 4] and calls.products == 0


def test_derivatives_inside_vmap() -> None:
    x = normal(CLIENTS, 4, 2, 5, 6)

    def loss(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, is_causal=True).square().sum()

    with StackedOps():
        found = vmap(grad(loss))(x)
    (exact,) = torch.autograd.grad(loss(x.flatten(0, 1)), x)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


def test_a_module_with_attention_of_torchs() -> None:
    module = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    params = {name: torch.stack([value.detach()] * CLIENTS) for name, value in module.named_parameters()}
    x = normal(CLIENTS, 4, 5, 8)
    with Calls() as calls, StackedOps():
        stacked = vmap(lambda params, x: functional_call(module, params, (x,)))(params, x)
    assert calls.batches == [CLIENTS * 4]
    torch.testing.assert_close(stacked, torch.stack([module(each) for each in x]), rtol=0, atol=1e-12)
