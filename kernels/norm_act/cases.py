"""Units that fit into one program and units that do not, every option; and the activations of ResNets."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..case import Case, Draws, Inputs, bytes_of

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
ROWS = {torch.float32: "fp32 sum", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Activations:
    """Stacked activations [clients, batch, channels, *image] and the options of norm_act.

    Attributes:
        last: Channels-last.
        apart: Other clients' memory lies between the samples, and rows are longer than the image.
        affine: Weight and bias, which are parts of longer rows.
        large: As Case.large.
    """

    clients: int
    batch: int
    channels: int
    image: tuple[int, ...]
    groups: int
    activation: str = "none"
    residual: bool = False
    affine: bool = True
    last: bool = False
    apart: bool = False
    dtype: torch.dtype = torch.float32
    large: bool = False

    @property
    def name(self) -> str:
        """Unique name of the case."""
        words = [
            f"{self.groups} groups" if self.groups else "batch",
            "x".join(map(str, self.shape)),
            self.activation if self.activation != "none" else "",
            *(word for word in ("residual", "last", "apart") if getattr(self, word)),
            "" if self.affine else "bare",
            NAMES[self.dtype],
        ]
        return " ".join(word for word in words if word)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.clients, self.batch, self.channels, *self.image

    def bytes_moved(self, passes: int) -> int:
        """Bytes of `passes` tensors of this shape."""
        return bytes_of([(self.shape, self.dtype)] * passes)

    def draw(self, draw: Draws, mean: float = 0.0) -> Tensor:
        """Draw activations in their memory layout."""
        clients, batch, channels, *image = self.shape
        if self.last:
            values = draw.normal(clients, batch, *image, channels, dtype=self.dtype).movedim(-1, 2)
        elif self.apart:
            wide = draw.normal(batch, clients, channels, *image[:-1], image[-1] + 3, dtype=self.dtype)
            values = wide.transpose(0, 1)[..., :-3]
        else:
            values = draw.normal(*self.shape, dtype=self.dtype)
        return values.add_(mean) if mean else values

    def inputs(self, draw: Draws) -> Inputs:
        """Return the arguments that norm_act and its gradients share."""
        weight, bias = (draw.padded(draw.normal(self.clients, self.channels), extra=5) for _ in range(2))
        return {
            "x": self.draw(draw, mean=3.0),
            "weight": weight if self.affine else None,
            "bias": bias if self.affine else None,
            "residual": self.draw(draw) if self.residual else None,
            "groups": self.groups,
            "activation": self.activation,
        }


SMALL = (
    Activations(3, 2, 6, (5, 3), 2),
    Activations(2, 3, 6, (4, 5), 3, "silu", residual=True, last=True),
    Activations(2, 1, 5, (3, 3), 1, "relu", apart=True),
    Activations(1, 2, 16, (8, 8), 4, "relu", residual=True, last=True, dtype=torch.bfloat16),
    Activations(2, 2, 4, (7,), 4, affine=False, dtype=torch.float16),
    Activations(2, 3, 7, (), 7, "silu"),
    Activations(3, 2, 5, (3, 3), 0, "relu", residual=True),
    Activations(2, 3, 16, (5, 4), 0, "silu", last=True, dtype=torch.bfloat16),
    Activations(1, 4, 3, (2, 3), 0, residual=True, apart=True, affine=False),
    Activations(1, 5, 4, (64, 60), 0, "relu", residual=True),
    Activations(1, 9, 24, (31, 33), 0, "silu", last=True),
    Activations(1, 1, 3, (150, 151), 1, "relu"),
    Activations(2, 3, 6, (4, 5), 0, "relu6", residual=True, last=True),
    Activations(2, 3, 6, (4, 5), 3, "relu6", dtype=torch.bfloat16),
    Activations(2, 3, 6, (4, 5), 2, "hardswish", residual=True),
    Activations(1, 5, 4, (64, 60), 0, "hardswish", last=True),
    Activations(0, 2, 4, (3, 3), 2),
    Activations(0, 2, 4, (3, 3), 0),
    Activations(2, 0, 4, (3, 3), 2),
    Activations(2, 0, 4, (3, 3), 0, residual=True),
    Activations(2, 2, 4, (3, 0), 4),
)


def _resnet(groups: int, activation: str, **options: bool) -> tuple[Activations, ...]:
    """Return the three stages of a ResNet for 32 x 32 images, with 32 clients of 32 images."""
    first = Activations(
        32, 32, 16, (32, 32), groups, activation, dtype=torch.bfloat16, large=True, last=options.get("last", True)
    )
    first = replace(first, residual=options.get("residual", False))
    return first, replace(first, channels=32, image=(16, 16)), replace(first, channels=64, image=(8, 8))


LARGE = (
    *_resnet(2, "silu"),
    *_resnet(2, "silu", residual=True),
    *_resnet(0, "relu"),
    *_resnet(0, "relu", residual=True),
    *_resnet(2, "silu", last=False)[:1],
    *_resnet(0, "relu", last=False)[:1],
    Activations(32, 32, 16, (32, 32), 2, "silu", residual=True, last=True, large=True),
    Activations(4, 32, 64, (112, 112), 0, "relu", last=True, dtype=torch.bfloat16, large=True),
    Activations(4, 32, 256, (56, 56), 32, "relu", residual=True, last=True, dtype=torch.bfloat16, large=True),
)


def _case(one: Activations) -> Case:
    return Case(
        name=one.name,
        make_inputs=lambda device: one.inputs(Draws(device)),
        tolerance=ROWS[one.dtype],
        bytes_moved=one.bytes_moved(3 if one.residual else 2),
        flops=8 * torch.Size(one.shape).numel(),
        large=one.large,
    )


CASES = tuple(_case(one) for one in (*SMALL, *LARGE))
