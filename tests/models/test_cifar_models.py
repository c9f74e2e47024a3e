from __future__ import annotations

import pytest
import torch
from torch import nn

from fastlocal.common.errors import UsageError
from fastlocal.models import RESNET_DEPTHS, VGG_DEPTHS, build
from fastlocal.models.cifar_resnet import Block

NORM = ("weight", "bias")
BATCHNORM = (*NORM, "running_mean", "running_var", "num_batches_tracked")


def _build(name: str, channels: int = 3, size: tuple[int, int] = (32, 32), classes: int = 10, **rest: int) -> nn.Module:
    return build(name, in_channels=channels, classes=classes, image_size=size, **rest)


def _resnet_keys(blocks: int, block: tuple[str, ...], norm: tuple[str, ...]) -> list[str]:
    """The reference's keys in its order; `block` lists a block's layers."""
    keys = ["conv1.weight", *(f"bn1.{name}" for name in norm)]
    for stage in (1, 2, 3):
        for index in range(blocks):
            for layer in block:
                parts = norm if layer.startswith("bn") else ("weight",)
                keys += [f"layer{stage}.{index}.{layer}.{part}" for part in parts]
    return [*keys, "linear.weight", "linear.bias"]


@pytest.mark.parametrize(("depth", "blocks"), [(20, 3), (56, 9)])
def test_resnet_state_dict_has_the_references_keys_in_its_order(depth: int, blocks: int) -> None:
    batchnorm = _resnet_keys(blocks, ("conv1", "bn1", "conv2", "bn2"), BATCHNORM)
    groupnorm = _resnet_keys(blocks, ("conv1", "bn1", "bn2", "conv2"), NORM)
    assert list(_build(f"resnet{depth}").state_dict()) == batchnorm
    assert list(_build(f"resnet{depth}_gn").state_dict()) == groupnorm


@pytest.mark.parametrize(
    ("depth", "published"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962), (1202, 19_421_274)],
)
def test_resnet_has_the_published_number_of_parameters(depth: int, published: int) -> None:
    assert depth in RESNET_DEPTHS
    assert sum(parameter.numel() for parameter in _build(f"resnet{depth}").parameters()) == published


def test_strided_block_adds_every_second_pixel_into_the_middle_channels() -> None:
    block = Block(16, 32, 2, None)
    nn.init.zeros_(block.bn2.weight)  # leaves the shortcut alone
    x = torch.rand(2, 16, 7, 8)
    expected = torch.zeros(2, 32, 4, 4)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), expected)


def test_resnet_pools_over_all_of_an_image_that_is_not_square() -> None:
    model = _build("resnet20_gn", channels=1, size=(24, 40), classes=3).double()
    maps: list[torch.Tensor] = []
    model.layer3.register_forward_hook(lambda module, inputs, output: maps.append(output))
    logits = model(torch.randn(2, 1, 24, 40, dtype=torch.float64))
    assert maps[0].shape == (2, 64, 6, 10)
    torch.testing.assert_close(logits, model.linear(maps[0].mean(dim=(2, 3))))


def test_groupnorm_resnets_use_silu_and_the_groups_asked_for() -> None:
    model = _build("resnet20_gn", n_groups=4)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.GroupNorm)]
    assert len(norms) == 19 and {norm.num_groups for norm in norms} == {4}
    x = torch.randn(2, 3, 32, 32)
    stem = model.bn1(model.conv1(x))
    seen: list[torch.Tensor] = []
    model.layer1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(x)
    torch.testing.assert_close(seen[0], stem * torch.sigmoid(stem))


@pytest.mark.parametrize("groups", [3, 32, 0, -8])
def test_groups_that_do_not_divide_are_refused(groups: int) -> None:
    with pytest.raises(UsageError, match=rf"--n-groups {groups} .*1, 2, 4, 8 or 16"):
        _build("resnet20_gn", n_groups=groups)
    assert _build("resnet20", n_groups=groups)  # a flag that means nothing for this model


def test_resnet_initialisation() -> None:
    model = _build("resnet56_gn")
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.ndim == 4:
            expected = (2 / tensor[0].numel()) ** 0.5
            assert tensor.std().item() == pytest.approx(expected, rel=0.1), name
        elif ".bn" in name or name.startswith("bn"):
            assert torch.all(tensor == (1 if name.endswith("weight") else 0)), name
    assert state["linear.weight"].std().item() == pytest.approx(0.01, rel=0.1)
    assert torch.all(state["linear.bias"] == 0)


@pytest.mark.parametrize("depth", VGG_DEPTHS)
def test_vgg_layers_and_keys(depth: int) -> None:
    model = _build(f"vgg{depth}", classes=7)
    kinds = [type(layer) for layer in model.features]
    assert kinds.count(nn.Conv2d) == depth - 3 and kinds.count(nn.AvgPool2d) == 5
    assert all(kinds[index + 1] is nn.SiLU for index, kind in enumerate(kinds) if kind is nn.Conv2d)
    assert model.classifier.weight.shape == (7, 512)
    convolutions = [index for index, kind in enumerate(kinds) if kind is nn.Conv2d]
    keys = [f"features.{index}.{part}" for index in convolutions for part in NORM]
    assert list(model.state_dict()) == [*keys, "classifier.weight", "classifier.bias"]


def test_vgg11_keys_skip_activations_and_poolings() -> None:
    weights = [key for key in _build("vgg11").state_dict() if key.endswith("weight")]
    assert weights[:-1] == [f"features.{index}.weight" for index in (0, 3, 6, 8, 11, 13, 16, 18)]


def test_vgg_initialisation() -> None:
    for name, tensor in _build("vgg13").state_dict().items():
        if name.endswith("bias"):
            assert torch.all(tensor == 0), name
        else:
            assert tensor.std().item() == pytest.approx((2 / tensor[0].numel()) ** 0.5, rel=0.1), name


@pytest.mark.parametrize(("size", "positions"), [((32, 63), 1), ((64, 64), 4), ((40, 100), 3)])
def test_vgg_takes_larger_images(size: tuple[int, int], positions: int) -> None:
    model = _build("vgg11", channels=1, size=size)
    assert model.classifier.in_features == 512 * positions
    assert model(torch.randn(2, 1, *size)).shape == (2, 10)


def test_vgg_refuses_images_of_which_its_poolings_leave_nothing() -> None:
    said = "--model vgg11 needs images of at least 32 x 32, those of --dataset are 28 x 40"
    with pytest.raises(UsageError, match=said):
        _build("vgg11", channels=1, size=(28, 40))
