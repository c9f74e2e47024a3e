"""A few of the odd modules; `python -m tests.strangers.odd_modules` judges as many as one likes."""

from __future__ import annotations

import pytest

from tests.strangers.odd_modules import in_turn, odd_module, outcomes

COUNT = 18


@pytest.mark.parametrize("seed", range(COUNT))
def test_an_odd_module_trains_as_plain_or_is_refused(seed: int) -> None:
    """By `auto` and by one of the others in turn."""
    wrong = [f"{one.by}: {one.said}" for one in outcomes(seed, in_turn(seed)) if one.kind == "wrong"]
    assert not wrong, f"{odd_module(seed)[3]}: {wrong}"
