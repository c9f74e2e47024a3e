"""The plain-torch references of the ops, against the public code whose arithmetic they claim."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as classic
from torchvision.transforms.v2 import functional as vision

from fastlocal import kernels
from fastlocal.kernels.gather_augment.reference import crop_boxes, gather_boxes

client_sgd = kernels.get("client_sgd", "reference")
client_adamw = kernels.get("client_adamw", "reference")
client_mean = kernels.get("client_mean", "reference")
noisy_targets = kernels.get("noisy_targets", "reference")

PADDING = 4


@pytest.mark.parametrize("clients", [0, 1, 3])
@pytest.mark.parametrize("n_params", [1, 127, 128, 129, 1009])
@pytest.mark.parametrize(("mu", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_client_sgd_is_torch_sgd(clients: int, n_params: int, mu: float, nesterov: bool, weight_decay: float) -> None:
    generator = torch.Generator().manual_seed(n_params)
    params = torch.randn(clients, n_params, dtype=torch.float64, generator=generator)
    mask = (torch.arange(n_params) % 3 > 0).double()
    momentum = torch.zeros_like(params) if mu else None
    expected = []
    for row in params.clone():
        decayed, free = torch.nn.Parameter(row[mask == 1]), torch.nn.Parameter(row[mask == 0])
        groups = [{"params": [decayed], "weight_decay": weight_decay}, {"params": [free], "weight_decay": 0.0}]
        expected.append((decayed, free, torch.optim.SGD(groups, lr=1.0, momentum=mu, nesterov=nesterov)))
    for _ in range(3):
        grads = torch.randn(clients, n_params, dtype=torch.float64, generator=generator)
        rates = torch.rand(clients, dtype=torch.float64, generator=generator)
        for (decayed, free, optimizer), grad, rate in zip(expected, grads, rates, strict=True):
            decayed.grad, free.grad = grad[mask == 1].clone(), grad[mask == 0].clone()
            for group in optimizer.param_groups:
                group["lr"] = float(rate)
            optimizer.step()
        client_sgd(params, momentum, grads, rates, mask, mu=mu, weight_decay=weight_decay, nesterov=nesterov)
    for row, (decayed, free, _) in zip(params, expected, strict=True):
        torch.testing.assert_close(row[mask == 1], decayed.detach(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(row[mask == 0], free.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("n_params", "weight_decay"), [(1, 0.1), (129, 0.0), (1009, 0.1)])
@pytest.mark.parametrize("corrected", [False, True])
def test_client_adamw_is_torch_adamw(n_params: int, weight_decay: float, corrected: bool) -> None:
    """Clients take different numbers of steps, and one of them takes none."""
    generator, clients = torch.Generator().manual_seed(n_params), 4

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    params, steps = normal(clients, n_params), torch.zeros(clients, dtype=torch.float64)
    moments, mask = (torch.zeros_like(params), torch.zeros_like(params)), (torch.arange(n_params) % 3 > 0).double()
    terms = {"center": normal(2, n_params), "prox": normal(clients).abs(), "drift": normal(clients, n_params)}
    terms["group"] = torch.tensor([1, 0, 0, 1], dtype=torch.int32)
    constants = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3}
    own = [[torch.nn.Parameter(row[mask == kind]) for kind in (1, 0)] for row in params.clone()]
    optimizers = []
    for decayed, free in own:
        groups = [{"params": [decayed], "weight_decay": weight_decay}, {"params": [free], "weight_decay": 0.0}]
        optimizers.append(torch.optim.AdamW(groups, lr=1.0, betas=(0.8, 0.95), eps=1e-3))
    for number in range(5):
        grads, rates = normal(clients, n_params), torch.rand(clients, dtype=torch.float64, generator=generator)
        active = torch.tensor([True, number % 2 == 0, number == 4, False])
        used = grads.clone()
        if corrected:
            used += terms["prox"][:, None] * (params - terms["center"][terms["group"].long()]) + terms["drift"]
        for pair, optimizer, grad, rate, takes_step in zip(own, optimizers, used, rates, active, strict=True):
            for parameter, kind in zip(pair, (1, 0), strict=True):
                parameter.grad = grad[mask == kind].clone()
            for group in optimizer.param_groups:
                group["lr"] = float(rate)
            if takes_step:
                optimizer.step()
        given = {**constants, "weight_decay": weight_decay, "active": active, **(terms if corrected else {})}
        client_adamw(params, *moments, steps, grads, rates, mask, **given)
    assert steps.tolist() == [5, 3, 1, 0]
    for row, pair in zip(params, own, strict=True):
        for parameter, kind in zip(pair, (1, 0), strict=True):
            torch.testing.assert_close(row[mask == kind], parameter.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("clients", [1, 2, 7])
@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_client_mean_of_chunks_is_the_mean(clients: int, chunk: int) -> None:
    params = torch.randn(clients, 129, generator=torch.Generator().manual_seed(clients))
    total = torch.zeros(129, dtype=torch.float64)
    for rows in params.split(chunk):
        client_mean(rows, total, 1 / clients)
    torch.testing.assert_close(total, params.double().mean(dim=0), rtol=1e-12, atol=1e-15)


def images_of(count: int, channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 100 + width)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def in_uint8(images: Tensor, ids: Tensor, boxes: tuple[Tensor, ...]) -> Tensor:
    """The gathered images as they were before the normalisation, which mean 0 and std 1/255 undo exactly."""
    channels = images.shape[1]
    out = gather_boxes(
        images, ids, boxes, padding=PADDING, mean=[0.0] * channels, std=[1 / 255] * channels, dtype=torch.float64
    )
    assert (out - out.round()).abs().max() < 1e-9
    return out.round().to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (1, 1), (7, 13), (28, 3)])
def test_crop_and_flip_are_those_of_torchvision(channels: int, height: int, width: int) -> None:
    images = images_of(5, channels, height, width)
    offsets = range(2 * PADDING + 1)
    corners = torch.tensor(list(itertools.product(offsets, offsets, (0, 1))))
    ids = torch.arange(len(corners)) % len(images)
    got = in_uint8(images, ids, (corners[:, 0], corners[:, 1], corners[:, 2].bool()))
    for image, index, (top, left, flip) in zip(got, ids.tolist(), corners.tolist(), strict=True):
        expected = vision.crop(vision.pad(images[index], [PADDING]), top, left, height, width)
        assert torch.equal(image, vision.horizontal_flip(expected) if flip else expected)


def test_crop_and_flip_are_those_of_pillow() -> None:
    images = images_of(4, 3, 9, 12)
    ids = torch.tensor([[0, 1, 2], [3, 3, 0]])
    boxes = crop_boxes(5, torch.tensor([0, 1]), 7, 3, PADDING)
    got = in_uint8(images, ids, boxes)
    for client, position in itertools.product(range(2), range(3)):
        top, left, flip = (int(part[client, position]) for part in boxes)
        picture = Image.fromarray(images[ids[client, position]].permute(1, 2, 0).numpy())
        # Pillow fills with black what lies outside of the picture
        cut = picture.crop((left - PADDING, top - PADDING, left - PADDING + 12, top - PADDING + 9))
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cut
        assert np.array_equal(np.asarray(cut), got[client, position].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_is_exact_in_float64_and_that_of_torchvision_in_float32(channels: int) -> None:
    images = images_of(6, channels, 5, 4)
    ids = torch.tensor([[5, 0], [0, 2]])
    mean, std = (0.4914, 0.4822, 0.4465)[:channels], (0.2023, 0.1994, 0.2010)[:channels]
    got = gather_boxes(images, ids, None, padding=PADDING, mean=mean, std=std, dtype=torch.float64)
    exact = (images.numpy()[ids.numpy()] / 255 - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    assert got.dtype == torch.float64
    assert np.abs(got.numpy() - exact).max() < 1e-14

    got = gather_boxes(images, ids, None, padding=PADDING, mean=mean, std=std, dtype=torch.float32)
    for index, image in zip(ids.flatten().tolist(), got.flatten(0, 1), strict=True):
        as_pillow_has_it = images[index].permute(1, 2, 0).numpy()
        assert torch.equal(image, classic.normalize(classic.to_tensor(as_pillow_has_it), list(mean), list(std)))


def test_the_padding_is_black_before_it_is_normalised() -> None:
    images = torch.full((1, 1, 6, 6), 255, dtype=torch.uint8)
    box = (torch.tensor([0]), torch.tensor([2]), torch.tensor([False]))
    got = gather_boxes(images, torch.tensor([0]), box, padding=PADDING, mean=[0.5], std=[0.25], dtype=torch.float64)
    expected = torch.full((6, 6), -2.0, dtype=torch.float64)
    expected[4:, 2:] = 2.0
    assert torch.equal(got[0, 0], expected)


def test_crop_boxes_are_uniform() -> None:
    top, left, flip = crop_boxes(0, torch.arange(40), 3, 500, PADDING)
    count = top.numel()
    for offsets in (top, left):
        cells = torch.bincount(offsets.flatten(), minlength=9)
        assert len(cells) == 9
        # chi-square with 8 degrees of freedom exceeds 26.1 once in a thousand seeds
        assert float(((cells - count / 9) ** 2 / (count / 9)).sum()) < 26.1
    assert abs(float(flip.double().mean()) - 0.5) < 4 * 0.5 / count**0.5
    pairs = torch.bincount((top * 9 + left).flatten(), minlength=81)
    assert float(((pairs - count / 81) ** 2 / (count / 81)).sum()) < 124.8  # 80 degrees of freedom


@settings(max_examples=30)
@given(classes=st.integers(2, 12), p=st.sampled_from([0.0, 0.1, 0.5, 1.0]), step=st.integers(0, 2**31))
def test_noisy_targets(classes: int, p: float, step: int) -> None:
    clients, batch = 16, 256
    targets = torch.arange(clients * batch).view(clients, batch) % classes
    noisy = noisy_targets(targets, p=p, classes=classes, seed=4, clients=torch.arange(clients), step=step)
    assert noisy.dtype == torch.int64
    assert 0 <= int(noisy.min()) and int(noisy.max()) < classes
    changed = noisy != targets
    if p in (0.0, 1.0):
        assert changed.all() if p else not changed.any()
        return
    # six standard deviations, as hypothesis tries many steps
    assert abs(float(changed.double().mean()) - p) < 6 * (p * (1 - p) / targets.numel()) ** 0.5


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_other_classes_are_equally_likely(classes: int) -> None:
    targets = torch.full((20, 1000), 1)
    noisy = noisy_targets(targets, p=1.0, classes=classes, seed=0, clients=torch.arange(20), step=0)
    cells = torch.bincount(noisy.flatten(), minlength=classes)
    assert cells[1] == 0
    others = cells[torch.arange(classes) != 1].double()
    mean = 20_000 / (classes - 1)
    # one in a thousand: chi-square of 1 and of 8 degrees of freedom
    assert float(((others - mean) ** 2 / mean).sum()) < {2: 1e-9, 3: 10.9, 10: 26.2}[classes]


def test_noise_is_drawn_anew_at_each_step() -> None:
    targets = torch.zeros(1, 1000, dtype=torch.int64)
    first, second = (
        noisy_targets(targets, p=0.5, classes=10, seed=0, clients=torch.tensor([0]), step=step) for step in (0, 1)
    )
    assert not torch.equal(first, second)
