"""Small kernels that bring to light the random words that the ops' kernels draw on the way, and their thresholds."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlocal.kernels.label_noise_loss.triton_kernel import word_threshold
from fastlocal.kernels.triton_philox import below, draw, seed_words


@triton.jit
def _words(out_ptr, clients_ptr, step, begin, seed_low, seed_high, bound, PURPOSE: tl.constexpr, BATCH: tl.constexpr):
    client = tl.load(clients_ptr + tl.program_id(0))
    position = tl.arange(0, BATCH)
    a, b, c, d = draw(seed_low, seed_high, PURPOSE, client, step, begin + position.to(tl.int64))
    out = out_ptr + tl.program_id(0) * BATCH * 5 + position
    tl.store(out, a.to(tl.int64))
    tl.store(out + BATCH, b.to(tl.int64))
    tl.store(out + 2 * BATCH, c.to(tl.int64))
    tl.store(out + 3 * BATCH, d.to(tl.int64))
    tl.store(out + 4 * BATCH, below(a, bound).to(tl.int64))


def words(seed: int, purpose: int, clients: Tensor, step: int, batch: int, bound: int, begin: int = 0) -> Tensor:
    """int64 [clients, 5, batch]: four words, and the first one as a number below `bound`.

    batch: a power of two        begin: the first position
    """
    out = torch.empty(len(clients), 5, batch, dtype=torch.int64, device=clients.device)
    low, high = seed_words(seed)
    _words[(len(clients),)](
        out_ptr=out,
        clients_ptr=clients,
        step=step,
        begin=begin,
        seed_low=low,
        seed_high=high,
        bound=bound,
        PURPOSE=purpose,
        BATCH=batch,
    )
    return out


@triton.jit
def _thresholds(out_ptr, p_ptr):
    place = tl.program_id(0)
    tl.store(out_ptr + place, word_threshold(tl.load(p_ptr + place)))


def thresholds(p: Tensor) -> Tensor:
    """int64 [n], of probabilities [n]."""
    out = torch.empty(len(p), dtype=torch.int64, device=p.device)
    _thresholds[(len(p),)](out_ptr=out, p_ptr=p)
    return out
