"""Cross-entropy of labels under vmap: torch's bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from fastlocal.kernels.functional import StackedOps

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "the function": F.cross_entropy,
    "the module": nn.CrossEntropyLoss(),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1),
    "another label ignored": lambda out, y: F.cross_entropy(out, y, ignore_index=2),
    "class weights": lambda out, y: F.cross_entropy(out, y, torch.linspace(0.5, 2, 7, dtype=out.dtype)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2, 127])
@pytest.mark.parametrize("kind", LOSSES)
def test_it_has_the_bits_of_torchs(kind: str, batch: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(batch)
    outputs = torch.randn(3, batch, 7, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, 7, (3, batch), generator=generator)
    if kind not in ("another label ignored", "class weights"):
        targets[0, 0] = -100
    results: list[tuple[Tensor, Tensor]] = []
    for mode in (StackedOps(), torch.enable_grad()):
        with mode:
            losses: Any = vmap(LOSSES[kind])(outputs, targets)
        results.append((losses, torch.autograd.grad(losses.sum(), outputs)[0]))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours.nan_to_num(9), theirs.nan_to_num(9))
