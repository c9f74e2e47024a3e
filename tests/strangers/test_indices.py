"""Numbers of rows that are not there: an error as the plain module's, and never another client's row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.plain_loop import Data, Loss, Recipe, plain_train
from tests.strangers.judge import EXECUTORS, TWO, assert_trains_as_plain, failure
from tests.strangers.strange_data import CLASSES, COLUMNS, WORDS, one_word, seeded, table, words


class Lookup(nn.Module):
    """Looks words up in a table of rows, by `look`: (weight [rows, columns], ids [batch, length])."""

    def __init__(self, look: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.look = look
        self.weight = nn.Parameter(torch.randn(WORDS, COLUMNS))
        self.b = nn.Linear(COLUMNS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.look(self.weight, x).mean(dim=1))


def gathered(weight: Tensor, ids: Tensor) -> Tensor:
    rows = weight.gather(0, ids.reshape(-1, 1).expand(-1, weight.shape[1]))
    return rows.view(*ids.shape, -1)


def along_dim(weight: Tensor, ids: Tensor) -> Tensor:
    rows = torch.take_along_dim(weight, ids.reshape(-1, 1).expand(-1, weight.shape[1]), dim=0)
    return rows.view(*ids.shape, -1)


def bags(weight: Tensor, ids: Tensor) -> Tensor:
    return F.embedding_bag(ids, weight, mode="mean").unsqueeze(1)


def selected(weight: Tensor, ids: Tensor) -> Tensor:
    return weight.index_select(0, ids.flatten()).view(*ids.shape, -1)


def one_hot(weight: Tensor, ids: Tensor) -> Tensor:
    return F.one_hot(ids, WORDS).to(weight.dtype) @ weight


def scattered(weight: Tensor, ids: Tensor) -> Tensor:
    none, ones = torch.zeros(len(ids), WORDS, dtype=weight.dtype), torch.ones_like(ids, dtype=weight.dtype)
    counts = none.scatter_add(1, ids, ones)
    return (counts @ weight).unsqueeze(1)


def padded(weight: Tensor, ids: Tensor) -> Tensor:
    return F.embedding(ids, weight, padding_idx=0)


LOOKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "F.embedding": lambda weight, ids: F.embedding(ids, weight),
    "F.embedding with padding": padded,
    "index_select": selected,
    "gather": gathered,
    "take_along_dim": along_dim,
    "embedding_bag": bags,
    "one_hot": one_hot,
    "scatter_add": scattered,
    "advanced indexing": lambda weight, ids: weight[ids],
}


def nn_embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(WORDS, COLUMNS), nn.Flatten(), nn.Linear(5 * COLUMNS, CLASSES))


def fails_too(make: Callable[[], nn.Module], data: Data, loss: Loss, executor: str) -> None:
    """The plain loop fails, and so does the executor, in one line."""
    with pytest.raises((IndexError, RuntimeError)):
        plain_train(make(), data, loss, Recipe())
    failure(make, data, loss, executor, Recipe())


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("word", [WORDS, -1])
def test_a_word_that_is_not_there(word: int, executor: str) -> None:
    fails_too(seeded(nn_embedding), one_word(words(), word), F.cross_entropy, executor)


@pytest.mark.parametrize("kind", [kind for kind in LOOKS if kind != "take_along_dim"])
@pytest.mark.parametrize("word", [WORDS, -1 - WORDS])
def test_a_row_that_is_not_there_by_whatever_function(kind: str, word: int) -> None:
    data, make = one_word(words(), word), seeded(lambda: Lookup(LOOKS[kind]))
    for executor in ("looped", "stacked"):
        fails_too(make, data, F.cross_entropy, executor)


def test_negative_numbers_count_from_the_end_where_torch_has_them_do_so() -> None:
    for word in (-1, -WORDS):
        data = one_word(words(), word)
        assert_trains_as_plain(seeded(lambda: Lookup(LOOKS["advanced indexing"])), data, may_refuse=("threaded",))


def test_numbers_beyond_the_last_start_again_where_torch_has_them_do_so() -> None:
    """As take_along_dim of torch 2.14 does: row 11 of 11 is the first."""
    for word in (WORDS, -1 - WORDS):
        data = one_word(words(), word)
        may_refuse = EXECUTORS  # whoever refuses them spares a user a silent mistake
        assert_trains_as_plain(seeded(lambda: Lookup(along_dim)), data, may_refuse=may_refuse)


class Shifted(nn.Module):
    """Reads the row before each, and of the first the last."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WORDS, COLUMNS))
        self.b = nn.Linear(COLUMNS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.weight[x - 1] + self.weight[-1]).mean(dim=1))


def test_negative_numbers_that_forward_computes() -> None:
    assert_trains_as_plain(seeded(Shifted), words(), may_refuse=("threaded",))


@pytest.mark.parametrize("kind", LOOKS)
def test_rows_that_are_there(kind: str) -> None:
    executors = EXECUTORS if kind == "F.embedding" else TWO
    assert_trains_as_plain(seeded(lambda: Lookup(LOOKS[kind])), words(), executors=executors, may_refuse=("stacked",))


def with_label(data: Data, label: int) -> Data:
    targets = data[1].clone()
    targets[-1] = label
    return data[0], targets


LABELS: dict[str, Any] = {
    "cross-entropy": F.cross_entropy,
    "the module": nn.CrossEntropyLoss(),
    "the likelihood": lambda out, y: F.nll_loss(F.log_softmax(out, dim=1), y),
    "gather": lambda out, y: -F.log_softmax(out, dim=1).gather(1, y[:, None]).mean(),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("label", [CLASSES, -1])
def test_a_label_that_is_not_there(kind: str, label: int) -> None:
    data = with_label(table(), label)
    for executor in EXECUTORS if kind == "cross-entropy" else ("stacked", "threaded"):
        fails_too(seeded(lambda: nn.Linear(COLUMNS, CLASSES)), data, LABELS[kind], executor)
