"""The models of bench.peers, each described once, as torch modules and as functions of JAX.

Images are [n, channels, height, width] in torch and in the files; JAX's convolutions see [n, height, width, channels],
which XLA prefers on a CPU. Parameters have torch's names and shapes in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

GROUPS = 8
"""Groups of a GroupNorm."""
Layer = tuple[Any, ...]


def _hidden(*features: int) -> tuple[Layer, ...]:
    """Return linear layers with ReLU between them."""
    layers: list[Layer] = [("flatten",)]
    for size, following in zip(features, features[1:], strict=False):
        layers += [("linear", size, following), ("relu",)]
    return tuple(layers[:-1])


def _resnet20() -> tuple[Layer, ...]:
    """Return ResNet-20 with GroupNorm and SiLU; its shortcuts are subsampled and padded with channels of zeros."""
    layers: list[Layer] = [("conv", 3, 16, 3, 1, False), ("norm", 16), ("silu",)]
    before = 16
    for channels in (16, 32, 64):
        for place in range(3):
            layers.append(("block", before, channels, 2 if place == 0 and channels > 16 else 1))
            before = channels
    return (*layers, ("mean",), ("linear", 64, 10))


NETS: Mapping[str, tuple[Layer, ...]] = {
    "logistic": _hidden(784, 10),
    "mlp": _hidden(784, 128, 10),
    "2nn": _hidden(784, 200, 200, 10),
    "cnn": (
        *(("conv", 3, 16, 3, 1, True), ("relu",), ("pool",), ("conv", 16, 32, 3, 1, True), ("relu",), ("pool",)),
        *(("flatten",), ("linear", 2048, 10)),
    ),
    "resnet20_gn": _resnet20(),
    # pfl-research's simple_cnn, BlazeFL's CNN and FedML's CNN_DropOut, without their dropout
    "simple_cnn": (
        *(("conv", 3, 32, 3, 0, True), ("relu",), ("conv", 32, 64, 3, 0, True), ("relu",), ("pool",)),
        *_hidden(64 * 14 * 14, 128, 10),
    ),
    "blazefl_cnn": (
        *(("conv", 3, 32, 5, 1, True), ("relu",), ("pool",), ("conv", 32, 64, 5, 1, True), ("relu",), ("pool",)),
        *_hidden(64 * 6 * 6, 512, 10),
    ),
    "femnist_cnn": (
        *(("conv", 1, 32, 3, 0, True), ("relu",), ("conv", 32, 64, 3, 0, True), ("relu",), ("pool",)),
        *_hidden(64 * 12 * 12, 128, 62),
    ),
}
"""Layers by model: a convolution has (in, out, kernel, padding, bias), a block (in, out, stride)."""


def torch_module(name: str, start: Mapping[str, Any] | None = None) -> Any:
    """Make a torch module, with given weights or torch's own of the moment."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Block(nn.Module):
        def __init__(self, before: int, channels: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
            self.norm1 = nn.GroupNorm(GROUPS, channels)
            self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
            self.norm2 = nn.GroupNorm(GROUPS, channels)
            self.padding = (channels - before) // 2

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x)))))
            if self.padding:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
            return F.silu(out + x)

    make = {
        "linear": nn.Linear,
        "conv": lambda before, after, size, padding, bias: nn.Conv2d(before, after, size, padding=padding, bias=bias),
        "block": Block,
        "norm": lambda channels: nn.GroupNorm(GROUPS, channels),
        "relu": nn.ReLU,
        "silu": nn.SiLU,
        "pool": lambda: nn.MaxPool2d(2),
        "mean": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "flatten": nn.Flatten,
    }
    module = nn.Sequential(*(make[kind](*values) for kind, *values in NETS[name]))
    if start is not None:
        module.load_state_dict({key: torch.from_numpy(value) for key, value in start.items()})
    return module


def jax_loss(name: str, params: Mapping[str, Any], inputs: Any, targets: Any) -> Any:
    """Return the mean cross-entropy of a batch in JAX; images are [n, height, width, channels]."""
    import jax
    import jax.numpy as jnp

    log_probabilities = jax.nn.log_softmax(_jax_outputs(NETS[name], params, inputs))
    return -jnp.mean(jnp.take_along_axis(log_probabilities, targets[:, None], 1))


def _jax_outputs(layers: tuple[Layer, ...], params: Mapping[str, Any], x: Any) -> Any:
    """Return a model's outputs in JAX."""
    import jax
    import jax.numpy as jnp

    def conv(key: str, x: Any, padding: int, stride: int = 1) -> Any:
        weight = params[key].transpose(2, 3, 1, 0)
        pads = ((padding, padding), (padding, padding))
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, weight, (stride, stride), pads, dimension_numbers=layout)

    def norm(key: str, x: Any) -> Any:
        n, height, width, channels = x.shape
        grouped = x.reshape(n, height, width, GROUPS, channels // GROUPS)
        mean = grouped.mean((1, 2, 4), keepdims=True)
        variance = grouped.var((1, 2, 4), keepdims=True)
        normalised = ((grouped - mean) * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape)
        return normalised * params[f"{key}.weight"] + params[f"{key}.bias"]

    for place, (kind, *values) in enumerate(layers):
        if kind == "linear":
            x = x @ params[f"{place}.weight"].T + params[f"{place}.bias"]
        elif kind == "conv":
            x = conv(f"{place}.weight", x, values[3])
            x = x + params[f"{place}.bias"] if values[4] else x
        elif kind == "norm":
            x = norm(str(place), x)
        elif kind == "relu":
            x = jax.nn.relu(x)
        elif kind == "silu":
            x = jax.nn.silu(x)
        elif kind == "pool":
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        elif kind == "mean":
            x = x.mean((1, 2))
        elif kind == "flatten":
            x = (x.transpose(0, 3, 1, 2) if x.ndim == 4 else x).reshape(len(x), -1)  # in torch's order
        else:
            before, channels, stride = values
            out = jax.nn.silu(norm(f"{place}.norm1", conv(f"{place}.conv1.weight", x, 1, stride)))
            out = norm(f"{place}.norm2", conv(f"{place}.conv2.weight", out, 1))
            if channels != before:
                x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), ((channels - before) // 2,) * 2))
            x = jax.nn.silu(out + x)
    return x


def jax_images(inputs: Any, shape: Sequence[int]) -> Any:
    """Return inputs whose samples have this shape as JAX's convolutions see images; others unchanged."""
    return inputs if len(shape) < 3 else inputs.swapaxes(-3, -2).swapaxes(-2, -1)
