"""The parts that kernels share: random words inside a kernel, and offsets beyond 2^31 elements."""

from __future__ import annotations

import pytest
import torch

from fastlocal.kernels import philox
from fastlocal.kernels.triton_rows import blocks_per_row
from tests.kernels.test_philox import KNOWN_ANSWERS
from tests.kernels.triton_probes import offsets, words

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


@pytest.mark.parametrize(("row", "stride"), [(5000, 855_770), (3, 2**30 + 1), (2**20, 2**13 + 3), (70_000, 70_001)])
def test_offsets_beyond_two_to_the_31(row: int, stride: int) -> None:
    block = 1024
    blocks = blocks_per_row(stride, block)
    begin = row * blocks
    assert row * stride > 2**31
    got = offsets(begin, 3, blocks, stride, block)
    for program, (offset, first, next_start) in zip(range(begin, begin + 3), got.tolist(), strict=True):
        client, index = divmod(program, blocks)
        assert first == index * block - client * stride % 16
        assert offset == client * stride + first and offset % 16 == 0
        assert next_start == (client + 1) * stride
