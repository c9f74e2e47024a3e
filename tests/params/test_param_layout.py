"""Flat rows and named views of them, and which parameters weight decay reaches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastlocal.params.param_layout import param_layout
from tests.helpers import small_models


@pytest.mark.parametrize("name", ["perceptron", "batchnorm", "groupnorm", "odd", "words"])
def test_a_row_holds_every_trained_parameter_once(name: str) -> None:
    module = small_models.make(name)
    layout = param_layout(module, group_weight=False)
    trained = {key: value for key, value in module.named_parameters() if value.requires_grad}
    row = layout.flatten(trained)
    assert row.shape == (layout.n_params,) == (sum(value.numel() for value in trained.values()),)
    views = layout.views(row)
    assert list(views) == list(trained)
    for key, value in trained.items():
        assert torch.equal(views[key], value)
        views[key].fill_(2.0)
    assert bool((row == 2).all())


def test_views_of_many_rows_share_their_memory() -> None:
    layout = param_layout(small_models.make("odd"), group_weight=False)
    rows = torch.zeros(2, 3, layout.n_params)
    views = layout.views(rows)
    assert views["gain"].shape == (2, 3) and views["first.weight"].shape == (2, 3, 6, 90)
    views["unused"][1, 2] = 1.0
    assert rows.sum() == rows[1, 2].sum() == 6


def test_gradients_of_views_arrive_as_one_contiguous_row() -> None:
    layout = param_layout(small_models.make("groupnorm"), group_weight=False)
    row = torch.randn(3, layout.n_params, requires_grad=True)
    (grad,) = torch.autograd.grad(torch.stack([(v**2).sum() for v in layout.views(row).values()]).sum(), row)
    assert grad.is_contiguous()
    torch.testing.assert_close(grad, 2 * row.detach())


class Everything(nn.Module):
    """A parameter of every kind that grouped weight decay tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        instance = nn.InstanceNorm2d(4, affine=True)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4), instance])
        self.attention = nn.MultiheadAttention(4, 2)
        self.embedding = nn.Embedding(5, 4)
        self.linear = nn.Linear(4, 2)


def decayed(group_weight: bool) -> set[str]:
    layout = param_layout(Everything(), group_weight=group_weight)
    views = layout.views(layout.decay_mask)
    assert all(view.min() == view.max() for view in views.values())
    return {name for name, view in views.items() if view.flatten()[0] == 1}


def test_grouped_weight_decay_spares_biases_and_norms() -> None:
    assert decayed(True) == {
        "conv.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "embedding.weight",
        "linear.weight",
    }


def test_without_groups_everything_decays() -> None:
    assert decayed(False) == {name for name, _ in Everything().named_parameters()}


def test_frozen_parameters_are_left_out_and_tied_ones_come_once() -> None:
    layout = param_layout(small_models.make("odd"), group_weight=False)
    assert layout.names == (
        "unused",
        "gain",
        "first.weight",
        "first.bias",
        "second.weight",
        "second.bias",
        "again.bias",
        "last.weight",
        "last.bias",
    )
