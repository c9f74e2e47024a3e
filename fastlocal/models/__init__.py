"""Models by name. This file does not import torch; the file of a model is imported when it is built."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastlocal.common.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import nn

TORCHVISION_PREFIX = "torchvision."
RESNET_DEPTHS = (20, 32, 44, 56, 110, 1202)
VGG_DEPTHS = (11, 13, 16, 19)

_RESNETS = {
    **{f"resnet{depth}": (depth, "batch") for depth in RESNET_DEPTHS},
    **{f"resnet{depth}_gn": (depth, "group") for depth in RESNET_DEPTHS},
}
_VGGS = {f"vgg{depth}": depth for depth in VGG_DEPTHS}
_SMALL = ("mlp", "cnn", "logistic", "2nn", "lenet", "simple_cnn")

NAMES: tuple[str, ...] = (*_SMALL, *_RESNETS, *_VGGS)
"""Names for `build`, besides torchvision's classification models (`torchvision.NAME`)."""
TOKEN_MODEL = "gpt_char"
"""Name of the model of `build_for_tokens`; written with a hyphen it is the same."""


def build(
    name: str,
    *,
    in_channels: int,
    classes: int,
    image_size: tuple[int, int],
    n_groups: int = 8,
    seed: int = 0,
) -> nn.Module:
    """Build a model in float32 on the CPU, in training mode: images [n, in_channels, *image_size] -> [n, classes].

    Args:
        name: Name of the model.
        in_channels: Channels of the images.
        classes: Number of outputs.
        image_size: (height, width) in pixels.
        n_groups: Groups of each GroupNorm in the `_gn` models; other models ignore it.
        seed: Seed of the weights; the caller's random states are restored.

    Raises:
        UsageError: The name is unknown, or the model does not support the images or `n_groups`.
    """
    refuse_unknown(name)
    if takes_tokens(name):
        raise UsageError(f"--model {name}: takes tokens, and those of --dataset are images; --dataset text has tokens")
    with _seeded(seed):
        return _construct(name, in_channels, classes, image_size, n_groups)


def build_for_tokens(
    name: str, *, vocabulary: int, context: int, n_layers: int = 2, width: int = 64, n_heads: int = 4, seed: int = 0
) -> nn.Module:
    """Build a model as `build`: int64 tokens [n, length] -> [n, length, vocabulary].

    Args:
        name: Name of the model.
        vocabulary: Number of tokens.
        context: Maximum length.
        n_layers: Number of blocks.
        width: Width of every place.
        n_heads: Attention heads of a block.
        seed: Seed of the weights; the caller's random states are restored.

    Raises:
        UsageError: The name is unknown, the model takes images, or `n_heads` does not divide `width`.
    """
    refuse_unknown(name)
    if not takes_tokens(name):
        raise UsageError(f"--model {name}: takes images, and the samples of --dataset are tokens; use {TOKEN_MODEL}")
    if width % n_heads:
        raise UsageError(f"--n-heads {n_heads}: must divide --width {width}")
    from fastlocal.models.char_gpt import CharGPT

    with _seeded(seed):
        return CharGPT(vocabulary, context, n_layers=n_layers, width=width, n_heads=n_heads)


def takes_tokens(name: str) -> bool:
    """Return True for the name of a model of tokens."""
    return name.replace("-", "_") == TOKEN_MODEL


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw weights from `seed`, on the CPU."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed also seeds the accelerators' generators, which fork_rng(devices=[]) does not restore
        torch.default_generator.manual_seed(seed)
        yield


def refuse_unknown(name: str) -> None:
    """Raise UsageError if there is no model `name`."""
    if takes_tokens(name):
        return
    if name.startswith(TORCHVISION_PREFIX):
        from fastlocal.models.torchvision_models import check_name

        check_name(name.removeprefix(TORCHVISION_PREFIX))
    elif name not in NAMES:
        raise UsageError(f"--model {name!r} is unknown{_suggestion(name)}")


def _construct(name: str, in_channels: int, classes: int, image_size: tuple[int, int], n_groups: int) -> nn.Module:
    if name in _RESNETS:
        from fastlocal.models.cifar_resnet import resnet

        depth, norm = _RESNETS[name]
        return resnet(depth, in_channels, classes, n_groups=n_groups if norm == "group" else None)
    if name in _VGGS:
        from fastlocal.models.cifar_vgg import vgg

        return vgg(_VGGS[name], in_channels, classes, image_size)
    if name in _SMALL:
        from fastlocal.models.small import small

        return small(name, in_channels, classes, image_size)
    from fastlocal.models.torchvision_models import torchvision_model

    return torchvision_model(name.removeprefix(TORCHVISION_PREFIX), in_channels, classes, image_size)


def _suggestion(name: str) -> str:
    from fastlocal.models.torchvision_models import classification_names

    if name in classification_names():
        return f"; did you mean '{TORCHVISION_PREFIX}{name}'?"
    known = *NAMES, TOKEN_MODEL
    return nearest(name, known) or f"; one of {', '.join(known)} or {TORCHVISION_PREFIX}NAME would do"
