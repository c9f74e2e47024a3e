"""label_noise_loss under a scale of the loss, and what it does not pretend to do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastlocal import kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ("reference", "triton")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_scaled_loss_keeps_small_gradients(dtype: torch.dtype, backend: str) -> None:
    """As a scaler of gradients wants it: the scale is beyond fp16, the gradients without it would be zero there."""
    draw = torch.Generator().manual_seed(0)
    logits = (12 * torch.randn(3, 4, 10, generator=draw)).to(DEVICE, dtype).requires_grad_()
    targets = torch.randint(10, (3, 4), generator=draw).to(DEVICE)
    scale = 2.0**17
    exact = logits.detach().double().requires_grad_()
    (scale * F.cross_entropy(exact.movedim(-1, 1), targets, reduction="none").mean(dim=-1).sum() / 16).backward()
    losses, _ = kernels.get("label_noise_loss", backend, DEVICE)(logits, targets, None, 0, p=0.0, seed=0)
    (scale * losses.sum() / 16).backward()
    assert logits.grad is not None and exact.grad is not None
    assert logits.grad.dtype == dtype
    rtol = 2e-2 if dtype == torch.bfloat16 else 2e-3
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loss_of_no_samples_is_not_a_number(backend: str) -> None:
    empty = torch.zeros(2, 0, dtype=torch.int64, device=DEVICE)
    logits = torch.zeros(2, 0, 5, device=DEVICE, requires_grad=True)
    losses, correct = kernels.get("label_noise_loss", backend, DEVICE)(logits, empty, None, 0, p=0.0, seed=0)
    assert losses.isnan().all() and correct.tolist() == [0, 0]


def test_a_second_derivative_is_refused() -> None:
    logits = torch.randn(2, 3, 5, device=DEVICE, requires_grad=True)
    targets = torch.zeros(2, 3, dtype=torch.int64, device=DEVICE)
    losses, _ = kernels.get("label_noise_loss", "triton", DEVICE)(logits, targets, None, 0, p=0.0, seed=0)
    (grad,) = torch.autograd.grad(losses.square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
