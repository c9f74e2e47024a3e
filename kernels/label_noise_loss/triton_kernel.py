"""Loss under label noise: one pass over the logits gives losses, correct predictions and gradients."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..arguments import expect, per_client
from ..philox import Purpose
from ..triton_philox import below, draw, key_words, seed_words

MAX_CLASSES = 8192
TO_INTEGER = tl.constexpr(1.5 * 2**52)
"""In fp64, its sum with a number from 0 to 2^51 has no bits for a fraction: halves are rounded to even."""


@triton.jit
def word_threshold(p):
    """Return round(p * 2^32), int64, of a probability; the product is exact in fp64."""
    return (p.to(tl.float64) * 4294967296.0 + TO_INTEGER - TO_INTEGER).to(tl.int64)


@triton.jit(do_not_specialize=["seed_low", "seed_high"])
def _label_noise_loss(
    logits_ptr,
    targets_ptr,
    clients_ptr,
    step_ptr,
    seed_ptr,
    p_ptr,
    losses_ptr,
    correct_ptr,
    grad_ptr,
    batch,
    logits_stride_client,
    logits_stride_sample,
    targets_stride_client,
    clients_stride,
    step_stride,
    seed_low: tl.uint32,
    seed_high: tl.uint32,
    THRESHOLD: tl.constexpr,
    PURPOSE: tl.constexpr,
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    compute: tl.constexpr = tl.float64 if logits_ptr.dtype.element_ty == tl.float64 else tl.float32
    classes = tl.arange(0, BLOCK)[None, :]
    losses = tl.zeros((ROWS,), compute)
    correct = tl.zeros((ROWS,), tl.int64)
    threshold = tl.full((), THRESHOLD, tl.int64)
    if p_ptr is not None:
        threshold = word_threshold(tl.load(p_ptr + slot))
    for begin in range(0, batch, ROWS):
        sample = begin + tl.arange(0, ROWS).to(tl.int64)
        exists = sample < batch
        clean = tl.load(targets_ptr + slot * targets_stride_client + sample, mask=exists, other=0)
        noisy = clean
        if p_ptr is not None or THRESHOLD > 0:
            client = tl.load(clients_ptr + slot * clients_stride)
            step = tl.load(step_ptr + slot * step_stride)
            low, high = key_words(seed_ptr, slot, seed_low, seed_high)
            happens, which, _, _ = draw(low, high, PURPOSE, client, step, sample)
            other = (clean + 1 + below(which, CLASSES - 1)) % CLASSES
            noisy = tl.where(happens.to(tl.int64) < threshold, other, clean)
        place = slot * logits_stride_client + sample[:, None] * logits_stride_sample + classes
        inside = exists[:, None] & (classes < CLASSES)
        logits = tl.load(logits_ptr + place, mask=inside, other=float("-inf")).to(compute)
        logits = tl.where(exists[:, None], logits, tl.where(classes == 0, 0.0, float("-inf")).to(compute))
        largest, guess = tl.max(logits, axis=1, return_indices=True)
        shifted = logits - largest[:, None]
        powers = tl.exp(shifted)
        total = tl.sum(powers, axis=1)
        is_noisy = classes == noisy[:, None]
        loss = tl.log(total) - tl.sum(tl.where(is_noisy, shifted, 0.0), axis=1)
        losses += tl.where(exists, loss, 0.0)
        correct += (exists & (guess == clean)).to(tl.int64)
        if grad_ptr is not None:
            grad = (powers / total[:, None] - tl.where(is_noisy, 1.0, 0.0)) / batch
            tl.store(grad_ptr + (slot * batch + sample[:, None]) * CLASSES + classes, grad, mask=inside)
    tl.store(losses_ptr + slot, tl.sum(losses, axis=0) / batch)
    tl.store(correct_ptr + slot, tl.sum(correct, axis=0))


def _launch(
    logits: Tensor,
    targets: Tensor,
    clients: Tensor | None,
    step: Tensor | int,
    p: Tensor | float,
    seed: Tensor | int,
    *,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return losses, correct predictions, and the gradient of the sum of the losses or None.

    For fp16 logits the gradient is stored in fp32: the factor of a loss scaler comes too late for small fp16 gradients,
    and may itself exceed fp16.
    """
    count, batch, classes = logits.shape
    dtype = torch.promote_types(logits.dtype, torch.float32)
    losses = torch.empty(count, dtype=dtype, device=logits.device)
    correct = torch.empty(count, dtype=torch.int64, device=logits.device)
    grad = None
    if with_grad:
        grad_dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
        grad = torch.empty(logits.shape, dtype=grad_dtype, device=logits.device)
    if not count:
        return losses, correct, grad
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    targets = targets.contiguous()
    threshold = 0 if isinstance(p, Tensor) else round(p * 2**32)
    noisy = isinstance(p, Tensor) or threshold > 0
    if noisy:
        assert clients is not None
        if isinstance(step, int):
            step = torch.full((), step, dtype=torch.int64, device=logits.device)
        step = step.expand(count)
    block = triton.next_power_of_2(classes)
    seed_low, seed_high = seed_words(seed)
    seeds = per_client("seed", seed if noisy else 0, (count,), logits.device, torch.int64)
    chances = per_client("p", p, (count,), logits.device)
    _label_noise_loss[(count,)](
        logits_ptr=logits,
        targets_ptr=targets,
        clients_ptr=clients if noisy else None,
        step_ptr=step if noisy else None,
        seed_ptr=seeds,
        p_ptr=chances,
        losses_ptr=losses,
        correct_ptr=correct,
        grad_ptr=grad,
        batch=batch,
        logits_stride_client=logits.stride(0),
        logits_stride_sample=logits.stride(1),
        targets_stride_client=targets.stride(0),
        clients_stride=clients.stride(0) if noisy and clients is not None else 0,
        step_stride=step.stride(0) if noisy and isinstance(step, Tensor) else 0,
        seed_low=seed_low,
        seed_high=seed_high,
        THRESHOLD=threshold,
        PURPOSE=int(Purpose.LABEL_NOISE),
        CLASSES=classes,
        ROWS=max(1, 512 // block),  # with twice as many, Triton 3.6 spills 8 bytes for 129 classes
        BLOCK=block,
        num_warps=4 if block <= 2048 else 16,
    )
    return losses, correct, grad


class _LabelNoiseLoss(torch.autograd.Function):
    """The forward pass writes the gradient with the loss; the backward pass scales it by each client's."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        clients: Tensor | None,
        step: Tensor | int,
        p: Tensor | float,
        seed: Tensor | int,
    ) -> tuple[Tensor, Tensor]:
        losses, correct, grad = _launch(logits, targets, clients, step, p, seed, with_grad=ctx.needs_input_grad[0])
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(correct)
        ctx.save_for_backward(grad)
        return losses, correct

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return (grad * grads[0][:, None, None]).to(ctx.dtype), None, None, None, None, None


def label_noise_loss(
    logits: Tensor,
    targets: Tensor,
    clients: Tensor | None,
    step: Tensor | int,
    *,
    p: Tensor | float,
    seed: Tensor | int,
    with_grad: bool = False,
) -> tuple[Tensor, ...]:
    """Return losses [clients] and correct predictions [clients], and the gradient; as the reference.

    A number `p` is a constant of the compiled kernel. Differentiable once. Raises ValueError for more than 8192
    classes, whose logits do not fit the registers of one program, and for a tensor of another shape or dtype.
    """
    if logits.dim() != 3 or not 0 < logits.shape[-1] <= MAX_CLASSES:
        raise ValueError(
            f"logits of shape {list(logits.shape)}, expected [clients, batch, classes] with 1 to {MAX_CLASSES} classes"
        )
    device, count = logits.device, logits.shape[:1]
    expect("logits", logits, logits.shape, device, dense=False)
    expect("targets", targets, logits.shape[:2], device, torch.int64, dense=False)
    expect("clients", clients, count, device, torch.int64, dense=False)
    if isinstance(step, Tensor):
        expect("step", step, count if step.dim() else (), device, torch.int64, dense=False)
    if with_grad:
        losses, correct, grad = _launch(logits.detach(), targets, clients, step, p, seed, with_grad=True)
        assert grad is not None
        return losses, correct, grad.to(logits.dtype)
    losses, correct = _LabelNoiseLoss.apply(logits, targets, clients, step, p, seed)
    return losses, correct
