"""Every family trains as the stacked executor trains it: one flat row of parameters per client, under vmap."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlocal.models import build

CLIENTS, BATCH = 3, 2
CASES = [
    ("mlp", 1, 8),
    ("cnn", 1, 8),
    ("resnet20", 3, 16),
    ("resnet20_gn", 3, 16),
    ("vgg11", 3, 32),
    ("torchvision.resnet18", 1, 32),
]


def _model(name: str, channels: int, size: int) -> nn.Module:
    return build(name, in_channels=channels, classes=5, image_size=(size, size)).double()


def _stacked_gradients(model: nn.Module, rows: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    torch.func.replace_all_batch_norm_modules_(model)
    names, parameters = zip(*model.named_parameters(), strict=True)
    buffers = dict(model.named_buffers())

    def loss_of_one(row: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        pieces = row.split([parameter.numel() for parameter in parameters])
        views = {
            name: piece.view(parameter.shape) for name, piece, parameter in zip(names, pieces, parameters, strict=True)
        }
        return F.cross_entropy(torch.func.functional_call(model, {**views, **buffers}, (images,)), targets)

    rows = rows.clone().requires_grad_()
    losses = torch.vmap(loss_of_one)(rows, images, targets)
    losses.sum().backward()
    assert rows.grad is not None
    return losses.detach(), rows.grad


def _plain_gradient(model: nn.Module, row: Tensor, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    nn.utils.vector_to_parameters(row, model.parameters())
    model.zero_grad()
    loss = F.cross_entropy(model(images), targets)
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(("name", "channels", "size"), CASES)
def test_stacked_gradients_are_those_of_the_plain_module(name: str, channels: int, size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    start = nn.utils.parameters_to_vector(_model(name, channels, size).parameters()).detach()
    noise = torch.randn(CLIENTS, start.numel(), generator=generator, dtype=torch.float64)
    rows = start + 0.02 * noise  # the clients have drifted apart
    images = torch.randn(CLIENTS, BATCH, channels, size, size, generator=generator, dtype=torch.float64)
    targets = torch.randint(5, (CLIENTS, BATCH), generator=generator)

    losses, gradients = _stacked_gradients(_model(name, channels, size), rows, images, targets)
    plain = _model(name, channels, size)
    for client in range(CLIENTS):
        loss, gradient = _plain_gradient(plain, rows[client], images[client], targets[client])
        torch.testing.assert_close(losses[client], loss, rtol=1e-11, atol=1e-12)
        error = (gradients[client] - gradient).norm() / gradient.norm()
        assert error < 1e-9, f"client {client}: relative error {error:.1e}"
