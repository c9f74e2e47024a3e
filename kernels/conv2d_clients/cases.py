"""Filters of every kind on images of odd sizes; and the layers of ResNets for small and for large images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..case import Case, Draws, Inputs, bytes_of
from .geometry import Geometry

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
ROWS = {torch.float32: "tf32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Layer:
    """A layer with images [clients, batch, channels, *image] and filters [clients, out, channels / groups, *kernel].

    Attributes:
        last: Channels-last images.
        apart: Other clients' memory lies between the images of a client.
        bias: Add a bias.
        statistics: Also return the statistics for BatchNorm.
        large: As Case.large.
    """

    clients: int
    batch: int
    channels: int
    image: tuple[int, int]
    out: int
    kernel: tuple[int, int] = (3, 3)
    geometry: Geometry = Geometry(padding=(1, 1))
    dtype: torch.dtype = torch.float32
    last: bool = False
    apart: bool = False
    bias: bool = False
    statistics: bool = False
    large: bool = False

    @property
    def name(self) -> str:
        """Unique name of the layer."""
        window = self.geometry
        words = [
            f"{self.clients}x{self.batch} {self.channels}->{self.out}",
            f"{self.kernel[0]}x{self.kernel[1]} on {self.image[0]}x{self.image[1]}",
            f"stride {window.stride[0]}x{window.stride[1]}" if window.stride != (1, 1) else "",
            f"dilation {window.dilation[0]}x{window.dilation[1]}" if window.dilation != (1, 1) else "",
            f"{window.groups} groups" if window.groups > 1 else "",
            *(word for word in ("last", "apart", "bias", "statistics") if getattr(self, word)),
            NAMES[self.dtype],
        ]
        return " ".join(word for word in words if word)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.clients, self.batch, self.channels, *self.image

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.clients, self.out, self.channels // self.geometry.groups, *self.kernel

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.clients, self.batch, self.out, *self.geometry.output_size(self.image, self.kernel)

    @property
    def flops(self) -> int:
        """Operations of the forward pass, and of each gradient."""
        clients, batch, out, height, width = self.y_shape
        return 2 * clients * batch * out * height * width * self.weight_shape[2] * self.kernel[0] * self.kernel[1]

    @property
    def bytes_moved(self) -> int:
        """Bytes of images, filters and results: the same for the forward pass and each gradient."""
        return bytes_of([(shape, self.dtype) for shape in (self.x_shape, self.weight_shape, self.y_shape)])

    def images(self, draw: Draws, shape: tuple[int, ...]) -> Tensor:
        """Draw images in the layer's memory layout."""
        clients, batch, channels, height, width = shape
        if self.last:
            return draw.normal(clients, batch, height, width, channels, dtype=self.dtype).permute(0, 1, 4, 2, 3)
        if self.apart:
            return draw.normal(batch, clients, channels, height, width + 3, dtype=self.dtype).transpose(0, 1)[..., :-3]
        return draw.normal(*shape, dtype=self.dtype)

    def filters(self, draw: Draws) -> Tensor:
        """Draw filters that preserve the magnitude of the images."""
        scale = (self.weight_shape[2] * self.kernel[0] * self.kernel[1]) ** -0.5
        return draw.normal(*self.weight_shape, dtype=self.dtype, scale=scale)


SAME = Geometry(padding=(1, 1))
HALF = Geometry(stride=(2, 2), padding=(1, 1))
UNEVEN = Geometry(stride=(2, 1), padding=(1, 2), dilation=(1, 2))
DILATED = Geometry(stride=(2, 2), padding=(2, 2), dilation=(2, 2))
STEM = Geometry(stride=(2, 2), padding=(3, 3))
POINT = Geometry()

SMALL = (
    Layer(3, 2, 3, (5, 7), 5),
    Layer(1, 1, 16, (6, 5), 16, last=True),
    Layer(2, 3, 8, (7, 4), 20, last=True, dtype=torch.float16),
    Layer(2, 1, 20, (4, 4), 34, dtype=torch.bfloat16),
    Layer(2, 2, 16, (7, 6), 24, geometry=HALF, last=True, dtype=torch.bfloat16),
    Layer(2, 1, 6, (8, 8), 8, geometry=HALF),
    Layer(2, 2, 4, (5, 6), 6, kernel=(1, 1), geometry=POINT),
    Layer(2, 2, 17, (5, 6), 3, kernel=(1, 1), geometry=Geometry(stride=(2, 2)), last=True),
    Layer(1, 1, 3, (13, 11), 7, kernel=(7, 7), geometry=STEM, last=True),
    Layer(2, 1, 4, (6, 5), 6, geometry=Geometry(UNEVEN.stride, UNEVEN.padding, UNEVEN.dilation, groups=2)),
    Layer(1, 2, 2, (7, 7), 2, geometry=DILATED),
    Layer(2, 1, 5, (4, 5), 5, geometry=Geometry(padding=(1, 1), groups=5)),
    Layer(2, 2, 4, (5, 4), 5, apart=True),
    Layer(0, 2, 4, (5, 4), 5),
    Layer(2, 0, 4, (5, 4), 5),
)

CLIENTS = (32, 512, 8, 128)
RESNET = tuple(
    Layer(clients, 32, channels, (size, size), out, geometry=geometry, last=True, dtype=torch.bfloat16, large=True)
    for clients in CLIENTS
    for channels, size, out, geometry in (
        (16, 32, 16, SAME),
        (3, 32, 16, SAME),
        (16, 32, 32, HALF),
        (32, 16, 32, SAME),
        (32, 16, 64, HALF),
        (64, 8, 64, SAME),
    )
)
"""All convolutions of ResNet-20 and ResNet-56, whose shortcuts have none."""

LARGE = (
    *RESNET,
    Layer(32, 32, 16, (32, 32), 16, last=True, large=True),
    Layer(32, 32, 64, (8, 8), 64, last=True, large=True),
    Layer(32, 32, 16, (32, 32), 16, dtype=torch.bfloat16, large=True),
    Layer(4, 32, 3, (224, 224), 64, kernel=(7, 7), geometry=STEM, last=True, dtype=torch.bfloat16, large=True),
    Layer(4, 32, 64, (56, 56), 256, kernel=(1, 1), geometry=POINT, last=True, dtype=torch.bfloat16, large=True),
)


def _case(layer: Layer) -> Case:
    def make_inputs(device: torch.device) -> Inputs:
        draw = Draws(device)
        inputs: Inputs = {"x": layer.images(draw, layer.x_shape), "weight": layer.filters(draw)}
        if layer.bias:
            inputs["bias"] = draw.normal(layer.clients, layer.out, dtype=layer.dtype)
        return inputs | {"geometry": layer.geometry, "statistics_eps": 1e-5 if layer.statistics else None}

    return Case(
        name=layer.name,
        make_inputs=make_inputs,
        tolerance="bf16 sum" if layer.statistics else ROWS[layer.dtype],
        bytes_moved=layer.bytes_moved,
        flops=layer.flops,
        large=layer.large,
    )


CASES = tuple(
    _case(layer)
    for layer in (
        *SMALL,
        Layer(3, 2, 3, (5, 7), 5, bias=True),
        Layer(2, 2, 16, (9, 9), 18, bias=True, statistics=True, last=True, dtype=torch.bfloat16),
        Layer(2, 1, 4, (13, 13), 6, geometry=Geometry(padding=(1, 1), groups=2), statistics=True),
        *LARGE,
        Layer(32, 32, 16, (32, 32), 16, statistics=True, last=True, dtype=torch.bfloat16, large=True),
    )
)
