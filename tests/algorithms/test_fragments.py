"""Parts of the parameters averaged in turns, against a plain loop."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlocal
from fastlocal.params.param_layout import param_layout
from fastlocal.training.fragments import fragment_columns
from tests.helpers.fork_server import ForkServer
from tests.helpers.processes import on_ranks

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(48, 6, generator=GENERATOR, dtype=torch.float64)
TARGETS = torch.randint(0, 4, (48,), generator=GENERATOR)
CLIENTS, STEPS, BATCH, ROUNDS, RATE = 3, 2, 4, 5, 0.1


def start() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def flat(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def streaming_diloco(columns: list[slice], momentum: float, outer: float, lr: float) -> Tensor:
    """Fragment r of round r is averaged, and steps by Nesterov; clients keep the rest and their AdamW."""
    x, velocity = flat(start()), torch.zeros_like(flat(start()))
    locals_ = [copy.deepcopy(start()) for _ in range(CLIENTS)]
    optimizers = [torch.optim.AdamW(one.parameters(), lr=RATE, weight_decay=0.01) for one in locals_]
    step = 0
    for number in range(ROUNDS):
        for _ in range(STEPS):
            epoch, at = divmod(step, 48 // (CLIENTS * BATCH))
            order = torch.randperm(48, generator=torch.Generator().manual_seed(epoch))
            for client, (one, optimizer) in enumerate(zip(locals_, optimizers, strict=True)):
                batch = order[(at * CLIENTS + client) * BATCH :][:BATCH]
                optimizer.zero_grad()
                F.cross_entropy(one(INPUTS[batch]), TARGETS[batch]).backward()
                optimizer.step()
            step += 1
        part = columns[number % len(columns)]
        gradient = x[part] - torch.stack([flat(one)[part] for one in locals_]).mean(dim=0)
        velocity[part] = outer * velocity[part] + gradient
        x[part] -= lr * (gradient + outer * velocity[part])
        for one in locals_:
            row = flat(one)
            row[part] = x[part]
            nn.utils.vector_to_parameters(row, one.parameters())
    return x


def run(directory: Path, rounds: int = ROUNDS, **settings: Any) -> Tensor:
    data = (INPUTS, TARGETS)
    fixed: dict[str, Any] = {"clients": CLIENTS, "batch_size": BATCH, "local_steps": STEPS, "lr": RATE}
    fixed |= {"weight_decay": 0.01, "client_optimizer": "adamw", "server_optimizer": "nesterov", "server_lr": 0.7}
    fixed |= {"precision": "fp64", "executor": "stacked", "sync_fragments": 3, "progress": False, "seed": 0}
    result = fastlocal.train(start(), data, data, rounds=rounds, directory=directory, **(fixed | settings))
    return flat(result.model)


def test_as_streaming_diloco(tmp_path: Path) -> None:
    """By stacked and looped steps, in chunks, and through an interruption, to the bit."""
    columns = fragment_columns(param_layout(start(), group_weight=False), 3)
    expected = streaming_diloco(columns, 0.9, 0.9, 0.7)
    whole = run(tmp_path / "stacked", chunk=2)
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(run(tmp_path / "looped", executor="looped"), expected, rtol=0, atol=1e-10)
    run(tmp_path / "stopped", rounds=2, chunk=2, client_store="disk")
    assert torch.equal(run(tmp_path / "stopped", chunk=2, client_store="disk", resume=True), whole)


def test_one_fragment_is_plain_diloco(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", sync_fragments=1)
    torch.testing.assert_close(alone, streaming_diloco([slice(0, 59)], 0.9, 0.9, 0.7), rtol=0, atol=1e-10)


def test_fragments_have_whole_parameters() -> None:
    layout = param_layout(start(), group_weight=False)
    ends = {place.stop for place in layout.places}
    for count in range(1, 5):
        columns = fragment_columns(layout, count)
        assert len(columns) == count and columns[0].start == 0 and columns[-1].stop == layout.n_params
        assert all(part.stop in ends and part.start < part.stop for part in columns)


def test_two_processes_train_the_same_model(fork_server: ForkServer, tmp_path: Path) -> None:
    words = "train --dataset digits --device cpu --precision fp64 --model mlp --clients 3 --batch-size 4 --step1 2"
    words += " --rounds 5 --client-lr 0.05 --sync-fragments 2 --server-optimizer nesterov --momentum 0.9"
    for ranks in (1, 2):
        on_ranks(fork_server, ranks, [*words.split(), "--log-pth", tmp_path / str(ranks)], tmp_path / "log")
    one, two = (torch.load(tmp_path / str(ranks) / "latest.pt", weights_only=True) for ranks in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sync_fragments": 0}, "sync_fragments=0: must be at least 1"),
        ({"sync_fragments": 5}, "the model has 4 parameters"),
        ({"algorithm": "fedprox"}, "is for algorithm fedavg"),
        ({"clients_drop": 0.5}, "all clients must take part"),
    ],
)
def test_mistakes(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        run(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
