"""Norm of every client's row in plain torch; also the CPU implementation."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def client_norm(rows: Tensor) -> Tensor:
    """Return the Euclidean norm of every row.

    Args:
        rows: [clients, n_params].

    Returns:
        [clients], float32, or float64 for float64 rows.
    """
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.promote_types(rows.dtype, torch.float32))
