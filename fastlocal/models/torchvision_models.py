"""torchvision's classification models with fresh weights, for any number of input channels."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from fastlocal.common.errors import UsageError, nearest


@cache
def classification_names() -> tuple[str, ...]:
    """Return torchvision's classification models, without detection, segmentation, video and quantised models."""
    from torchvision import models

    return tuple(models.list_models(module=models))


def check_name(name: str) -> None:
    """Raise UsageError if torchvision has no classification model `name`."""
    if name not in classification_names():
        hint = nearest(f"torchvision.{name}", (f"torchvision.{known}" for known in classification_names()))
        raise UsageError(f"--model 'torchvision.{name}' is no classification model of torchvision{hint}")


def torchvision_model(name: str, in_channels: int, classes: int, image_size: tuple[int, int]) -> nn.Module:
    """Make a torchvision model without auxiliary heads: images [n, in_channels, *image_size] -> [n, classes].

    If `in_channels` is not 3, the first convolution is replaced by a matching one with torch's initialisation.

    Raises:
        UsageError: There is no such classification model, or it does not support the images.
    """
    from torchvision import models

    check_name(name)
    try:
        module = models.get_model(name, weights=None, num_classes=classes, **_options(name, image_size))
        if in_channels != 3:
            _replace_first_convolution(module, in_channels)
        _probe(module, in_channels, image_size)
    except (RuntimeError, ValueError, AssertionError) as error:
        height, width = image_size
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"--model torchvision.{name} cannot take images of {in_channels} x {height} x {width} as those of "
            f"--dataset are: {reason}"
        ) from error
    return module


def _options(name: str, image_size: tuple[int, int]) -> dict[str, Any]:
    """Return the constructor's options of a model besides the number of classes."""
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        if image_size[0] != image_size[1]:
            raise ValueError("only square images")
        return {"image_size": image_size[0]}
    if name.startswith("maxvit"):
        return {"input_size": image_size}
    return {}


def _replace_first_convolution(module: nn.Module, in_channels: int) -> None:
    path, old = next((path, layer) for path, layer in module.named_modules() if isinstance(layer, nn.Conv2d))
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        kernel_size=old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    parent, _, attribute = path.rpartition(".")
    setattr(module.get_submodule(parent), attribute, new)


def _probe(module: nn.Module, in_channels: int, image_size: tuple[int, int]) -> None:
    """Run the model on the meta device (shapes without arithmetic), so that unsupported images fail before training."""
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in module.state_dict().items()}
    image = torch.empty(1, in_channels, *image_size, device="meta")
    module.eval()  # BatchNorm refuses one value per channel in training mode
    torch.func.functional_call(module, state, (image,))
    module.train()
