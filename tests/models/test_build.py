from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from fastlocal.common.errors import UsageError
from fastlocal.models import NAMES, build
from fastlocal.models.batchnorm import has_batchnorm


def _build(
    name: str, channels: int = 3, size: tuple[int, int] = (32, 32), classes: int = 10, seed: int = 0
) -> nn.Module:
    return build(name, in_channels=channels, classes=classes, image_size=size, seed=seed)


@pytest.mark.parametrize("name", [name for name in NAMES if "1202" not in name])
def test_every_name_builds_a_model_of_these_channels_and_classes(name: str) -> None:
    model = _build(name, channels=2, classes=5)
    assert model.training
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    with torch.no_grad():
        assert model(torch.randn(2, 2, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("name", ["mlp", "resnet20", "vgg11", "torchvision.resnet18"])
def test_weights_follow_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = _build(name, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = _build(name, seed=3).state_dict(), _build(name, seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(("size", "features"), [((8, 8), 64), ((28, 28), 784), ((5, 3), 15)])
def test_mlp_takes_any_image(size: tuple[int, int], features: int) -> None:
    model = _build("mlp", channels=1, size=size)
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    assert shapes == [(128, features), (128,), (10, 128), (10,)]
    x = torch.randn(3, 1, *size)
    torch.testing.assert_close(model(x), model.linear(model.hidden(x.reshape(3, -1)).clamp(min=0)))


@pytest.mark.parametrize(("size", "features"), [((8, 8), 128), ((28, 28), 1568), ((7, 13), 96), ((4, 4), 32)])
def test_cnn_takes_any_image_from_4x4(size: tuple[int, int], features: int) -> None:
    model = _build("cnn", channels=1, size=size)
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    assert shapes == [(16, 1, 3, 3), (16,), (32, 16, 3, 3), (32,), (10, features), (10,)]
    assert model(torch.randn(3, 1, *size)).shape == (3, 10)


@pytest.mark.parametrize(
    ("name", "channels", "side", "parameters"),
    [("logistic", 1, 28, 7_850), ("2nn", 1, 28, 199_210), ("lenet", 1, 28, 44_426), ("simple_cnn", 3, 32, 1_626_442)],
)
def test_models_of_published_results_have_their_sizes(name: str, channels: int, side: int, parameters: int) -> None:
    model = _build(name, channels=channels, size=(side, side))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.eval()(torch.randn(3, channels, side, side)).shape == (3, 10)


def test_cnn_refuses_smaller_images() -> None:
    with pytest.raises(UsageError, match="--model cnn needs images of at least 4 x 4, those of --dataset are 3 x 8"):
        _build("cnn", size=(3, 8))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet20gn", "did you mean 'resnet20_gn'"),
        ("resnet56-gn", "did you mean 'resnet56_gn'"),
        ("resnet50", "did you mean 'torchvision.resnet50'"),
        ("torchvision.resnet51", "did you mean 'torchvision.resnet50'"),
        ("zzz", "one of mlp, cnn, logistic"),
    ],
)
def test_unknown_names_are_answered_with_what_would_do(name: str, said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        _build(name)
    text = str(refusal.value)
    assert text.startswith(f"--model {name!r} is ") and said in text and "\n" not in text


@pytest.mark.parametrize(
    "name", ["fasterrcnn_resnet50_fpn", "fcn_resnet50", "r3d_18", "quantized_resnet18", "raft_small"]
)
def test_only_classification_models_of_torchvision_are_taken(name: str) -> None:
    with pytest.raises(UsageError, match="is no classification model of torchvision"):
        _build(f"torchvision.{name}")


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("resnet18", 1, (28, 28)),
        ("mobilenet_v3_small", 4, (32, 48)),
        ("squeezenet1_1", 1, (32, 32)),
        ("vit_b_16", 1, (32, 32)),
        ("swin_t", 2, (32, 32)),
        ("googlenet", 1, (32, 32)),
        ("inception_v3", 3, (75, 75)),
    ],
)
def test_torchvision_models_take_the_datas_channels_classes_and_size(
    name: str, channels: int, size: tuple[int, int]
) -> None:
    model = _build(f"torchvision.{name}", channels=channels, size=size, classes=7)
    assert model.training
    logits = model(torch.randn(2, channels, *size))
    assert isinstance(logits, torch.Tensor) and logits.shape == (2, 7)


@pytest.mark.parametrize(("name", "size"), [("alexnet", (32, 32)), ("vit_b_16", (40, 40)), ("vit_b_16", (32, 48))])
def test_images_that_a_torchvision_model_cannot_take_are_refused(name: str, size: tuple[int, int]) -> None:
    said = rf"--model torchvision.{name} .* 3 x {size[0]} x {size[1]} .*--dataset"
    with pytest.raises(UsageError, match=said) as refusal:
        _build(f"torchvision.{name}", size=size)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet20", True), ("resnet20_gn", False), ("vgg11", False), ("mlp", False), ("torchvision.resnet18", True)],
)
def test_has_batchnorm(name: str, expected: bool) -> None:
    assert has_batchnorm(_build(name)) is expected


def test_names_are_known_without_torch() -> None:
    program = "import sys, fastlocal.models as m; assert 'resnet20' in m.NAMES; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_small_models_do_without_torchvision() -> None:
    program = (
        "import sys, fastlocal.models as m; m.build('cnn', in_channels=1, classes=2, image_size=(8, 8));"
        "sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
