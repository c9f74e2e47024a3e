"""Gradients of all parameters in rows, most of them written there by the kernels that compute them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastlocal.kernels.gradient_rows import gradient_rows, is_placed

from ..params.param_layout import ParamLayout

LARGE = 2**14
"""Size of a parameter from which its gradient is copied by itself; smaller ones are gathered and copied at once."""


def best_by_parameter(device: torch.device, *, compile: bool) -> bool:
    """Return True if a gradient for each parameter is faster than a row of all gradients.

    On a CPU the row takes two more passes over memory. A compiled program gathers the gradients itself.
    """
    return device.type == "cpu" and not compile


class GradientRows:
    """Rows [clients, n_params] of a layout.

    Autograd's own way is one concatenation of all gradients, two passes over them.
    """

    def __init__(self, layout: ParamLayout) -> None:
        self._places = layout.places
        self._columns: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, params: Tensor, differentiate: Callable[[], tuple[Tensor, ...]]) -> Tensor:
        """Return the gradients of rows of parameters.

        Args:
            params: [clients, n_params].
            differentiate: Returns the gradients [clients, *shape] of the parameters, in the order of the layout.
        """
        rows = torch.empty_like(params)
        if rows.stride() != params.stride():
            return torch.cat([grad.flatten(1) for grad in differentiate()], dim=1)
        with gradient_rows(params, rows):
            grads = differentiate()
        missing = [place for place, grad in enumerate(grads) if not is_placed(grad, rows)]
        if len(missing) == len(grads):
            return torch.cat([grad.flatten(1) for grad in grads], dim=1)
        small = tuple(place for place in missing if grads[place][0].numel() < LARGE)
        for place in missing:
            if place not in small:
                rows[:, self._places[place]].copy_(grads[place].flatten(1))
        if small:
            gathered = torch.cat([grads[place].flatten(1) for place in small], dim=1)
            rows.index_copy_(1, self._columns_of(small, rows.device), gathered)
        return rows

    def _columns_of(self, small: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the columns of some parameters, which the first step makes."""
        if small not in self._columns:
            ranges = [
                torch.arange(self._places[place].start, self._places[place].stop, device=device) for place in small
            ]
            self._columns[small] = torch.cat(ranges)
        return self._columns[small]
