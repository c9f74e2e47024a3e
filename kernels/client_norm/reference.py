"""The length of every client's row, in plain torch; also the CPU path."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def client_norm(rows: Tensor) -> Tensor:
    """The Euclidean norm of every row.

    rows: [clients, n_params]
    Returns [clients] in float32, or in float64 where rows are.
    """
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.promote_types(rows.dtype, torch.float32))
