"""Random words drawn inside a kernel are the published ones, and those that torch draws."""

from __future__ import annotations

import pytest
import torch

from fastlocal.kernels import philox
from tests.kernels.philox_vectors import KNOWN_ANSWERS
from tests.kernels.triton_probes import thresholds, words

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_published_answers(counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]) -> None:
    position, client, step, purpose = counter
    clients = torch.tensor([client], device=DEVICE)
    got = words(key[0] | key[1] << 32, purpose, clients, step, batch=1, bound=9, begin=position)
    assert tuple(got[0, :4, 0].tolist()) == answer


@pytest.mark.parametrize("seed", [0, 7, 2**31 + 5, 2**40 + 3, 2**63 - 1])
@pytest.mark.parametrize("step", [0, 1, 2**31 - 1, 2**32 - 1])
def test_words_are_those_of_torch(seed: int, step: int) -> None:
    clients = torch.tensor([0, 3, 2**31 + 1], device=DEVICE)
    got = words(seed, philox.Purpose.LABEL_NOISE, clients, step, 8, 9)
    expected = philox.draw(seed, philox.Purpose.LABEL_NOISE, clients, step, 8)
    for index, word in enumerate(expected):
        assert torch.equal(got[:, index], word)
    assert torch.equal(got[:, 4], philox.below(expected[0], 9))


def test_probabilities_of_clients_have_the_thresholds_of_numbers() -> None:
    """Halves of a word go to the even one, as Python rounds them."""
    chances = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).tolist()
    chances += [0.0, 1.0, 0.1, 0.5 / 2**32, 1.5 / 2**32, 2.5 / 2**32, (2**31 + 0.5) / 2**32]
    found = thresholds(torch.tensor(chances, dtype=torch.float64, device=DEVICE))
    assert found.tolist() == [round(chance * 2**32) for chance in chances]
