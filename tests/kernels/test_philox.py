"""The generator behind every random draw: the published answers, and draws that depend on nothing but their counter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlocal.kernels import philox
from tests.kernels.philox_vectors import KNOWN_ANSWERS


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_published_answers(counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]) -> None:
    a, b, c, d = (torch.tensor([word, 1]) for word in counter)
    words = philox.philox4x32((a, b, c, d), key)
    assert tuple(int(word[0]) for word in words) == answer


@given(seed=st.integers(0, 2**63 - 1), step=st.integers(0, 2**32 - 1), batch=st.integers(1, 9), cut=st.integers(0, 7))
def test_draws_do_not_depend_on_who_else_is_drawn(seed: int, step: int, batch: int, cut: int) -> None:
    clients = torch.arange(7)
    whole = philox.draw(seed, philox.Purpose.CROP, clients, step, batch)
    first = philox.draw(seed, philox.Purpose.CROP, clients[:cut], step, batch)
    second = philox.draw(seed, philox.Purpose.CROP, clients[cut:], step, batch)
    shorter = philox.draw(seed, philox.Purpose.CROP, clients, step, 1)
    for word, one, other, only in zip(whole, first, second, shorter, strict=True):
        assert torch.equal(word, torch.cat([one, other]))
        assert torch.equal(word[:, :1], only)


def test_steps_may_be_drawn_at_once() -> None:
    clients, steps = torch.arange(3), torch.arange(5)
    whole = philox.draw(2, philox.Purpose.SAMPLE, clients, steps[:, None], 4)
    for step in range(5):
        for word, one in zip(whole, philox.draw(2, philox.Purpose.SAMPLE, clients, step, 4), strict=True):
            assert torch.equal(word[step], one)


def test_every_part_of_the_key_matters() -> None:
    clients = torch.arange(4)
    draws = [
        philox.draw(seed, purpose, clients, step, 4)[word]
        for seed in (0, 1, 2**32, 2**62)
        for purpose in philox.Purpose
        for step in (0, 1)
        for word in range(4)
    ]
    values = torch.stack(draws).flatten().tolist()
    assert len(set(values)) == len(values)


@given(bound=st.integers(1, 2**31))
def test_below_stays_below_and_reaches_both_ends(bound: int) -> None:
    ends = philox.below(torch.tensor([0, 2**32 - 1]), bound)
    assert ends.tolist() == [0, bound - 1]


def test_certain_and_impossible_events() -> None:
    words = torch.tensor([0, 1, 2**31, 2**32 - 1])
    assert not philox.happens(words, 0.0).any()
    assert philox.happens(words, 1.0).all()
    assert philox.happens(words, 0.5).tolist() == [True, True, False, False]
