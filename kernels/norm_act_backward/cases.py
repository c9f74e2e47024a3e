"""Activations of the forward pass, with the gradient of its result."""

from __future__ import annotations

import torch

from ..case import Case, Draws, Inputs
from ..norm_act.cases import LARGE, ROWS, SMALL, Activations
from ..norm_act.reference import norm_act


def _case(one: Activations) -> Case:
    def make_inputs(device: torch.device) -> Inputs:
        draw = Draws(device)
        inputs = one.inputs(draw)
        _, mean, rstd = norm_act(**inputs)
        return inputs | {"grad": one.draw(draw), "mean": mean, "rstd": rstd}

    # reads the gradient and x, with an activation the residual too; writes one gradient or two
    passes = 3 + (one.residual + (one.residual and one.activation != "none"))
    return Case(
        name=one.name,
        make_inputs=make_inputs,
        tolerance=ROWS[one.dtype],
        bytes_moved=one.bytes_moved(passes),
        flops=16 * torch.Size(one.shape).numel(),
        large=one.large,
    )


CASES = tuple(_case(one) for one in (*SMALL, *LARGE))
