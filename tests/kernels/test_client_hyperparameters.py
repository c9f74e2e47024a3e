"""Seeds, noise, momenta and decays that differ between clients: each row has the bits of a call of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from fastlocal import kernels
from fastlocal.kernels import philox
from fastlocal.kernels.module_draws import module_words
from fastlocal.models.client_random.mode import ClientRandom

SEEDS = [0, 2**32 + 7, -1, 2**63 - 1, 2**31]
STEPS = [3, 0, 2**31, 3, 2**32 - 1]
CLIENTS = [4, 4, 0, 9, 2**31]
NOISES = [0.0, 1.0, 0.1, 0.3, 2.0**-33 * 5]
SGD = kernels.get("client_sgd", "reference")


def rows(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_draws_of_a_seed_for_each_client() -> None:
    seeds, clients, steps = (torch.tensor(values) for values in (SEEDS, CLIENTS, STEPS))
    at_once = philox.draw(seeds, philox.Purpose.CROP, clients, steps, 5)
    several_steps = philox.draw(seeds, philox.Purpose.CROP, clients, torch.arange(2)[:, None], 5)
    one_client = philox.draw(seeds[1], philox.Purpose.CROP, clients[1], 3, 5)
    for row, (seed, client, step) in enumerate(zip(SEEDS, clients, STEPS, strict=True)):
        for word, alone in zip(at_once, philox.draw(seed, philox.Purpose.CROP, client, step, 5), strict=True):
            assert torch.equal(word[row], alone)
        for word, alone in zip(several_steps, philox.draw(seed, philox.Purpose.CROP, client, 1, 5), strict=True):
            assert torch.equal(word[1, row], alone)
    assert torch.equal(one_client[0], philox.draw(SEEDS[1], philox.Purpose.CROP, clients[1], 3, 5)[0])
    counter = [torch.arange(6).view(2, 3), torch.tensor(1), torch.tensor(2), torch.tensor(3)]
    key = torch.tensor([5, 2**32 - 1, 0]), torch.tensor(9)
    on_cpu = philox.philox4x32(tuple(counter), key)  # type: ignore[arg-type]
    for column in range(3):
        alone = philox.philox4x32((counter[0][:, column], *counter[1:]), (int(key[0][column]), 9))  # type: ignore[arg-type]
        assert all(torch.equal(word[:, column], one) for word, one in zip(on_cpu, alone, strict=True))


def test_labels_and_losses_of_a_noise_for_each_client() -> None:
    clients, batch, classes = len(SEEDS), 200, 3
    targets = torch.arange(clients * batch).view(clients, batch) % classes
    logits = rows(clients, batch, classes, dtype=torch.float32, seed=0)
    noises = torch.tensor(NOISES, dtype=torch.float64)
    seeds, numbers, steps = (torch.tensor(values) for values in (SEEDS, CLIENTS, STEPS))
    draw, loss = (kernels.get(op, "reference") for op in ("noisy_targets", "label_noise_loss"))
    noisy = draw(targets, p=noises, classes=classes, seed=seeds, clients=numbers, step=steps)
    found = loss(logits, targets, numbers, steps, p=noises, seed=seeds, with_grad=True)
    assert torch.equal(noisy[0], targets[0]) and bool((noisy[1] != targets[1]).all())
    for row in range(clients):
        one, own = slice(row, row + 1), {"p": NOISES[row], "seed": SEEDS[row]}
        alone = draw(targets[one], classes=classes, clients=numbers[one], step=STEPS[row], **own)
        assert torch.equal(noisy[one], alone)
        results = loss(logits[one], targets[one], numbers[one], STEPS[row], with_grad=True, **own)
        assert all(torch.equal(part[one], whole) for part, whole in zip(found, results, strict=True))


def test_a_probability_for_each_client_has_the_threshold_of_the_number() -> None:
    chances = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).tolist()
    chances += [0.0, 1.0, 2.5 / 2**32, 3.5 / 2**32, 0.1]
    for chance in chances:
        edge = round(chance * 2**32)
        below = philox.happens(torch.tensor([edge - 1, edge]), torch.tensor(chance, dtype=torch.float64))
        assert below.tolist() == [True, False]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_images_of_a_seed_for_each_client(backend: str) -> None:
    images = torch.randint(0, 256, (7, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(len(SEEDS) * 4).view(len(SEEDS), 4) % 7
    options: dict[str, Any] = {"padding": 4, "mean": [0.5] * 3, "std": [0.25] * 3, "dtype": torch.float32}
    seeds, clients, steps = (torch.tensor(values) for values in (SEEDS, CLIENTS, STEPS))
    gather = kernels.get("gather_augment", backend, "cpu")
    found = gather(images, ids, clients, steps, seed=seeds, **options)
    for row, (seed, step) in enumerate(zip(SEEDS, STEPS, strict=True)):
        alone = gather(images, ids[row : row + 1], clients[row : row + 1], step, seed=seed, **options)
        assert torch.equal(found[row : row + 1], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("factors", [torch.float64, None])
def test_steps_of_a_momentum_and_a_decay_for_each_client(
    dtype: torch.dtype, nesterov: bool, factors: torch.dtype | None
) -> None:
    clients = 6
    mus = torch.tensor([0.9, 0.9, 0.0, 0.99, 0.5, 1 / 3], dtype=factors or dtype)
    decays = torch.tensor([5e-4, 0.0, 0.1, 0.0, 1e-2, 1 / 3], dtype=factors or dtype)
    rates = torch.rand(clients, dtype=dtype, generator=torch.Generator().manual_seed(3))
    for n_params in (1, 9, 127, 1009):
        mask = (torch.arange(n_params) % 3 > 0).to(dtype)
        buffers = [rows(clients, n_params, dtype=dtype, seed=seed) for seed in range(3)]
        for buffer in buffers[1:]:
            buffer[:, ::4] = -0.0
        for own in ({}, {"mu": 0.9}, {"weight_decay": 0.1}, {"weight_decay": 0.0}):
            found, alone = ([buffer.clone() for buffer in buffers] for _ in range(2))
            SGD(*found, rates, mask, **{"mu": mus, "weight_decay": decays, **own}, nesterov=nesterov)
            for row in range(clients):
                number = {"mu": float(mus[row]), "weight_decay": float(decays[row]), **own}
                one = slice(row, row + 1)
                SGD(*(buffer[one] for buffer in alone), rates[one], mask, **number, nesterov=nesterov)
            for one, other in zip(found[:2], alone[:2], strict=True):
                assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)), (n_params, own)


def test_a_modules_draws_of_a_seed_and_a_step_for_each_client() -> None:
    dropout, inputs = nn.Dropout(0.4), torch.ones(33)
    seeds, clients, steps = (torch.tensor(values) for values in (SEEDS, CLIENTS, STEPS))

    def forward(seed: Tensor | int, client: Tensor, step: Tensor) -> Tensor:
        with ClientRandom(seed, client, step):
            return dropout(inputs) + torch.randn(33)

    alone = torch.stack([forward(*one) for one in zip(SEEDS, clients, steps, strict=True)])
    assert torch.equal(vmap(forward, randomness="error")(seeds, clients, steps), alone)
    one_seed = vmap(lambda client, step: forward(SEEDS[1], client, step))(clients, steps)
    assert torch.equal(one_seed[1], alone[1])
    one_client = vmap(lambda seed, step: forward(seed, clients[3], step))(seeds, steps)
    assert torch.equal(one_client[3], alone[3])
    over_steps = vmap(lambda step: vmap(lambda seed, client: forward(seed, client, step))(seeds, clients))(steps)
    assert torch.equal(over_steps[range(5), range(5)], alone)
    over_seeds = vmap(lambda seed: module_words(clients, steps, 6, 2, seed))(seeds)
    assert torch.equal(over_seeds[2], module_words(clients, steps, 6, 2, SEEDS[2]))
