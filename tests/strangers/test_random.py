"""Random numbers: masks that no way of computing changes, and the caller's generators as they were."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.helpers.plain_loop import Data, Recipe
from tests.strangers.judge import train
from tests.strangers.strange_data import CLASSES, COLUMNS, Net, images, seeded, table

WAYS: tuple[dict[str, Any], ...] = (
    {"executor": "looped"},
    {"executor": "stacked", "chunk": 3},
    {"executor": "looped", "chunk": 1},
    {"executor": "stacked"},
    {"executor": "threaded"},
    {"executor": "auto"},
)


class Functional(Net):
    """Two masks of one call each, drawn by the functional dropout."""

    def between(self, hidden: Tensor) -> Tensor:
        hidden = F.dropout(hidden, 0.3, self.training)
        return F.dropout(hidden, 0.5, training=self.training)


def dropouts() -> nn.Module:
    return nn.Sequential(nn.Linear(COLUMNS, 8), nn.Dropout(0.5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, CLASSES))


def in_place() -> nn.Module:
    return nn.Sequential(nn.Linear(COLUMNS, 8), nn.Dropout(0.5, inplace=True), nn.Linear(8, CLASSES))


def channels() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(24, CLASSES))


def selu() -> nn.Module:
    return nn.Sequential(nn.Linear(COLUMNS, 8), nn.SELU(), nn.AlphaDropout(0.3), nn.Linear(8, CLASSES))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(COLUMNS, 2, 8, dropout=0.4, batch_first=True)
        self.head = nn.Linear(COLUMNS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.stack([x, x.flip(1), 2 * x], dim=1)
        return self.head(self.layer(tokens).mean(dim=1))


DROPOUTS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Data]]] = {
    "modules": (dropouts, table),
    "functions": (Functional, table),
    "in place": (in_place, table),
    "of channels": (channels, images),
    "alpha": (selu, table),
    "in attention": (Attention, table),
}


@pytest.mark.parametrize("kind", DROPOUTS)
def test_masks_are_the_same_in_every_way_or_the_way_is_refused(kind: str, tmp_path: Path) -> None:
    make, data = DROPOUTS[kind]
    trained = {}
    for place, way in enumerate(WAYS if kind == "functions" else WAYS[:2]):
        try:
            run = train(seeded(make), data(), F.cross_entropy, tmp_path / str(place), Recipe(), **way)
        except ValueError as refusal:
            assert way["executor"] == "threaded" and "\n" not in str(refusal), f"{way}: {refusal}"
            continue
        trained[str(way)] = nn.utils.parameters_to_vector(run.model.parameters()).detach()
    first, *others = trained
    for other in others:
        torch.testing.assert_close(trained[other], trained[first], rtol=1e-9, atol=1e-9, msg=f"{other} beside {first}")


@pytest.mark.parametrize("reentrant", [False, True])
def test_masks_that_the_backward_pass_draws_anew_are_refused(reentrant: bool, tmp_path: Path) -> None:
    class Recomputed(Functional):
        def between(self, hidden: Tensor) -> Tensor:
            return checkpoint(super().between, hidden, use_reentrant=reentrant)

    with pytest.raises(ValueError, match="draws random numbers in its backward pass, as dropout within"):
        train(seeded(Recomputed), table(), F.cross_entropy, tmp_path / "run", Recipe(), executor="looped")


def test_masks_differ_by_client_step_call_and_seed(tmp_path: Path) -> None:
    class Watched(Functional):
        """Writes its masks down, as it may keep nothing from call to call."""

        def between(self, hidden: Tensor) -> Tensor:
            ones = torch.ones_like(hidden)
            both = [F.dropout(ones, 0.5, self.training), F.dropout(ones, 0.5, self.training)]
            with contextlib.suppress(RuntimeError):  # what vmap hands over, as the module is tried, has no values
                drawn = [f"{mask.flatten().tolist()}\n" for mask in both if self.training]
                with (tmp_path / "masks").open("a") as written:
                    written.writelines(drawn)
            return hidden * both[0] * both[1]

    seen = []
    for seed in (0, 1):
        train(seeded(Watched), table(), F.cross_entropy, tmp_path / str(seed), Recipe(seed=seed), executor="looped")
        seen.append(set((tmp_path / "masks").read_text().splitlines()))
        (tmp_path / "masks").unlink()
    steps = 4 * 4 * 3
    assert min(map(len, seen)) >= 2 * steps * 0.99, "masks repeat"
    assert len(seen[0] & seen[1]) < steps / 4, "masks of two seeds are the same"  # but those as the module is tried


class DrawsItself(Net):
    """Noise from torch's own generator: no dropout, so that nothing can draw it in its place."""

    def between(self, hidden: Tensor) -> Tensor:
        return hidden + 0.1 * torch.randn_like(hidden) if self.training else hidden


@pytest.mark.parametrize("make", [dropouts, Functional, DrawsItself])
@pytest.mark.parametrize("executor", ["looped", "stacked"])
def test_the_callers_generators_are_left_as_they_were(make: Any, executor: str, tmp_path: Path) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    try:
        train(seeded(make), table(), F.cross_entropy, tmp_path / "run", Recipe(rounds=1), executor=executor)
    except ValueError as refusal:
        assert make is DrawsItself and "\n" not in str(refusal)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


def test_repeats_of_one_seed_start_from_four_models(tmp_path: Path) -> None:
    torch.manual_seed(7)
    starts = set()
    for place in range(4):
        module = dropouts().double()
        starts.add(module[0].weight[0, 0].item())
        train(lambda module=module: module, table(), F.cross_entropy, tmp_path / str(place), Recipe(rounds=1))
    assert len(starts) == 4
