"""VGG-11/13/16/19 (Simonyan and Zisserman 2015) for 32x32 images.

They have no normalisation, SiLU instead of ReLU, average pooling after each stage and a single linear layer. The keys
of the state dict are those of the Local SGD code of Gu et al. (2023).
"""

from __future__ import annotations

from torch import Tensor, nn

from fastlocal.common.errors import UsageError

STAGES = (64, 128, 256, 512, 512)
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Number of 3x3 convolutions in each stage, by depth."""
DOWNSAMPLING = 2 ** len(STAGES)
"""Factor by which the poolings reduce height and width."""


def vgg(depth: int, in_channels: int, classes: int, image_size: tuple[int, int]) -> VGG:
    """Make a VGG of `depth` layers; raise UsageError for images smaller than 32x32, the reduction of its poolings."""
    height, width = image_size
    if min(image_size) < DOWNSAMPLING:
        raise UsageError(
            f"--model vgg{depth} needs images of at least {DOWNSAMPLING} x {DOWNSAMPLING}, those of --dataset are "
            f"{height} x {width}; cnn, mlp or resnet20 would do"
        )
    return VGG(CONVOLUTIONS[depth], in_channels, classes, (height // DOWNSAMPLING) * (width // DOWNSAMPLING))


class VGG(nn.Module):
    """Images [n, in_channels, h, w] -> [n, classes]; the linear layer has `positions` = (h // 32) * (w // 32)."""

    def __init__(self, convolutions: tuple[int, ...], in_channels: int, classes: int, positions: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        planes_in = in_channels
        for planes, count in zip(STAGES, convolutions, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(planes_in, planes, kernel_size=3, padding=1), nn.SiLU()]
                planes_in = planes
            layers.append(nn.AvgPool2d(kernel_size=2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(STAGES[-1] * positions, classes)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))
