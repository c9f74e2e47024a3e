"""The transformer of characters: its weights, what its places see, and all clients in one attention a layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fastlocal.common.errors import UsageError
from fastlocal.kernels.functional import StackedOps
from fastlocal.models import build, build_for_tokens
from fastlocal.params.losses import token_cross_entropy
from fastlocal.params.param_layout import param_layout
from tests.kernels.test_attention import Calls

CLIENTS, BATCH, LENGTH, LAYERS = 3, 2, 6, 2


def make(name: str = "gpt_char", seed: int = 0) -> nn.Module:
    sizes = {"vocabulary": 11, "context": LENGTH, "n_layers": LAYERS, "width": 8, "n_heads": 2}
    return build_for_tokens(name, seed=seed, **sizes).double()


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(0))


def test_weights_follow_the_seed_and_the_name_its_spelling_not() -> None:
    first, again, other = make().state_dict(), make("gpt-char").state_dict(), make(seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    layout = param_layout(make(), group_weight=True)
    exempt = [name for name, decays in zip(layout.names, layout.decays, strict=True) if not decays]
    assert exempt == [*(f"blocks.{i}.norm{j}.weight" for i in range(LAYERS) for j in (1, 2)), "norm.weight"]


def test_a_place_sees_itself_and_those_before_it() -> None:
    model, x = make(), tokens(1, LENGTH)
    for place in range(LENGTH):
        changed = x.clone()
        changed[0, place] = (x[0, place] + 1) % 11
        difference = (model(changed) - model(x)).abs().amax(-1)[0]
        assert (difference[:place] == 0).all() and (difference[place:] > 0).all()
    torch.testing.assert_close(model(x[:, :3]), model(x)[:, :3])  # shorter texts too


def test_all_clients_share_one_attention_a_layer() -> None:
    model, x = make(), tokens(CLIENTS, BATCH, LENGTH + 1)
    models = [make(seed=seed) for seed in range(CLIENTS)]
    names = [name for name, _ in model.named_parameters()]
    states = [dict(each.named_parameters()) for each in models]
    params = {name: torch.stack([state[name].detach() for state in states]).requires_grad_() for name in names}

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return token_cross_entropy(functional_call(model, params, (x[:, :-1],)), x[:, 1:])

    with Calls() as calls:
        with StackedOps():
            losses = vmap(loss)(params, x)
        losses.sum().backward()
    assert calls.batches == [CLIENTS * BATCH] * (2 * LAYERS)  # forward and backward
    for client, plain in enumerate(models):
        exact = F.cross_entropy(plain(x[client, :, :-1]).transpose(1, 2), x[client, :, 1:])
        exact.backward()
        torch.testing.assert_close(losses[client], exact, rtol=0, atol=1e-10)
        for name, parameter in plain.named_parameters():
            found = params[name].grad
            assert found is not None
            torch.testing.assert_close(found[client], parameter.grad, rtol=0, atol=1e-10)


def test_what_it_refuses() -> None:
    with pytest.raises(UsageError, match="--n-heads 3: must divide --width 8"):
        build_for_tokens("gpt_char", vocabulary=11, context=4, width=8, n_heads=3)
    with pytest.raises(UsageError, match="--model mlp: takes images"):
        build_for_tokens("mlp", vocabulary=11, context=4)
    with pytest.raises(UsageError, match="--model gpt-char: takes tokens"):
        build("gpt-char", in_channels=1, classes=2, image_size=(4, 4))
    with pytest.raises(UsageError, match="did you mean 'gpt_char'"):
        build("gpt_cahr", in_channels=1, classes=2, image_size=(4, 4))
