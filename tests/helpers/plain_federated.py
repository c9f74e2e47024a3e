"""Federated training in plain torch, client by client: the judge of cohorts, own samples, weights and servers.

It shares nothing with fastlocal: generator, permutations, cohorts and the equations of servers are stated here
a second time, one number at a time. Each client is a module of its own with an optimizer of torch.optim.
"""

from __future__ import annotations

import bisect
import copy
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

MASK = 2**32 - 1
LABEL_NOISE, EPOCH, COHORT, DROP, STRAGGLER, HELD_OUT = 2, 6, 7, 8, 10, 11


def philox(counter: tuple[int, int, int, int], seed: int) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al. 2011)."""
    a, b, c, d = counter
    k0, k1 = seed & MASK, seed >> 32
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = q >> 32 ^ b ^ k0, q & MASK, p >> 32 ^ d ^ k1, p & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return a, b, c, d


def permuted(seed: int, purpose: int, client: int, step: int, size: int, place: int) -> int:
    """Entry `place` of the keyed permutation of range(size)."""
    keys = [
        word
        for call in range(6)
        for word in philox((call, client, step & MASK, (step >> 32 << 8 | purpose) & MASK), seed)
    ]
    bits = (size - 1).bit_length()
    low_bits = bits // 2
    while True:
        low, high = place % 2**low_bits, place // 2**low_bits
        for number, key in enumerate(keys):
            word = (low if number % 2 == 0 else high) ^ key
            for multiplier in (0x85EBCA6B, 0xC2B2AE35):
                word = (word ^ word >> 16) * multiplier & MASK
            word ^= word >> 16
            if number % 2 == 0:
                high ^= word % 2 ** (bits - low_bits)
            else:
                low ^= word % 2**low_bits
        place = high * 2**low_bits + low
        if place < size:
            return place


def held_out(owned: Sequence[Sequence[int]], fraction: float, seed: int) -> list[list[int]]:
    """The samples of each client that it is tested on, and not trained."""
    found = []
    for client, mine in enumerate(owned):
        count = min(math.floor(fraction * len(mine) + 0.5), len(mine) - 1)
        places = {permuted(seed, HELD_OUT, client, 0, len(mine), place) for place in range(count)}
        found.append([sample for place, sample in enumerate(mine) if place in places])
    return found


@dataclass(frozen=True)
class Federation:
    """Settings of a run, under their own names."""

    owned: Sequence[Sequence[int]]
    clients: int
    rounds: int = 4
    local_steps: int = 3
    batch_size: int = 4
    lr: float = 0.1
    client_optimizer: str = "sgd"
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    seed: int = 5
    cohort_sampling: str = "uniform"
    available: Sequence[Sequence[int]] = ()
    clients_drop: float = 0.0
    client_epochs: str = "restart"
    client_weights: Sequence[float] | str = "examples"
    client_state: str = "reset"
    factor: Callable[[int], float] = field(default=lambda number: 1.0)
    local_epochs: float | None = None
    last_batch: str = "fill"
    stragglers: float = 0.0
    clip_norm: float | None = None
    noise_p: float = 0.0
    classes: int = 4

    def cohort(self, number: int) -> dict[int, int]:
        """The clients of a round, counted from 1, and how often each was drawn."""
        size, each = len(self.owned), range(self.clients)
        words = [philox((place, 0, number, COHORT), self.seed)[0] for place in each]
        if self.cohort_sampling == "replacement":
            drawn = [word * size >> 32 for word in words]
        elif self.cohort_sampling == "weighted":
            ends = [sum(len(mine) for mine in self.owned[: client + 1]) for client in range(size)]
            drawn = [bisect.bisect_right(ends, word * ends[-1] >> 32) for word in words]
        elif self.cohort_sampling == "cyclic":
            drawn = [((number - 1) * self.clients + place) % size for place in each]
        else:
            can = self.available[(number - 1) % len(self.available)] if self.available else range(size)
            places = [permuted(self.seed, COHORT, 0, number, len(can), place) for place in each[: len(can)]]
            drawn = [can[place] for place in places]
        here = [
            one
            for one in drawn
            if philox((0, one, number, DROP), self.seed)[0] >= round(self.clients_drop * 2**32) and self.whole_work(one)
        ]
        return {client: here.count(client) for client in sorted(here)}

    def whole_work(self, client: int) -> int:
        """The steps of a client in a round that it does not leave early."""
        if self.local_epochs is None:
            return self.local_steps
        n, b, e = len(self.owned[client]), self.batch_size, Fraction(str(self.local_epochs))
        return {
            "fill": max(1, math.ceil(e * n / b)),
            "drop": math.floor(e * (n // b)),
            "partial": math.ceil(e * math.ceil(Fraction(n, b))),
        }[self.last_batch]

    def work(self, client: int, number: int) -> int:
        """The steps of a client in a round."""
        steps = self.whole_work(client)
        leaves, when, *_ = philox((0, client, number, STRAGGLER), self.seed)
        return 1 + (when * steps >> 32) if leaves < round(self.stragglers * 2**32) else steps

    def batches(self, client: int, number: int, taken: int) -> list[list[int]]:
        """The batches of a client in a round that it begins after `taken` steps."""
        goes_on, steps = self.client_epochs == "continue", self.work(client, number)
        first = taken if goes_on else 0

        def epoch(at: int) -> list[int]:
            mine, key = self.owned[client], at if goes_on else (number << 31) + at
            return [mine[permuted(self.seed, EPOCH, client, key, len(mine), place)] for place in range(len(mine))]

        if self.last_batch == "fill":
            stream = itertools.chain.from_iterable(map(epoch, itertools.count()))
            wanted = itertools.islice(stream, first * self.batch_size, (first + steps) * self.batch_size)
            return [list(batch) for batch in zip(*[wanted] * self.batch_size, strict=True)]
        loaders = (
            DataLoader(epoch(at), self.batch_size, drop_last=self.last_batch == "drop", collate_fn=list)  # type: ignore[arg-type]
            for at in itertools.count()
        )
        return list(itertools.islice(itertools.chain.from_iterable(loaders), first, first + steps))

    def labels(self, targets: Tensor, client: int, step: int) -> Tensor:
        """The labels of a batch under label noise."""
        found = targets.tolist()
        for place, label in enumerate(found):
            replaced, other, *_ = philox((place, client, step, LABEL_NOISE), self.seed)
            if replaced < round(self.noise_p * 2**32):
                found[place] = (label + 1 + (other * (self.classes - 1) >> 32)) % self.classes
        return torch.tensor(found)

    def optimizer(self, parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        if self.client_optimizer == "adamw":
            betas, decay = (self.beta1, self.beta2), self.weight_decay
            return torch.optim.AdamW(parameters, rate, betas, self.adam_eps, weight_decay=decay)
        return torch.optim.SGD(parameters, lr=rate, momentum=self.momentum, weight_decay=self.weight_decay)

    @property
    def kept(self) -> tuple[str, ...]:
        """Return the names of the state that the optimizer keeps for each parameter."""
        if self.client_optimizer == "adamw":
            return "exp_avg", "exp_avg_sq", "step"
        return ("momentum_buffer",) if self.momentum else ()

    def weights(self, cohort: dict[int, int]) -> list[float]:
        raw = {
            "examples": [len(self.owned[client]) for client in cohort],
            "uniform": [1 for _ in cohort],
        }
        values = raw.get(str(self.client_weights)) or [self.client_weights[client] for client in cohort]
        values = [value * times for value, times in zip(values, cohort.values(), strict=True)]
        return [value / math.fsum(values) for value in values]


def train(
    module: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    plan: Federation,
    server: Callable[[Tensor, Tensor, float], Tensor],
    watch: Callable[[int, dict[int, Tensor], Tensor], None] = lambda number, ends, row: None,
) -> tuple[Tensor, list[float]]:
    """Return the flat global model, and the mean training loss of each round.

    `watch` is told the number of each round, the flat models of its clients at its end, and the global one after it.
    """
    row = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    moments: dict[int, list[Tensor]] = {}
    taken = [0] * len(plan.owned)
    average: list[Tensor] | None = None
    losses = []
    for number in range(1, plan.rounds + 1):
        cohort, ends, ended, found = plan.cohort(number), [], [], []
        first_step = (number - 1) * max(plan.whole_work(client) for client in range(len(plan.owned)))
        rate = plan.lr * plan.factor(number)
        for client in cohort:
            own = copy.deepcopy(module)
            nn.utils.vector_to_parameters(row.clone(), own.parameters())
            optimizer = plan.optimizer(own.parameters(), rate)
            kept = {"keep": moments.get(client), "average": average}.get(plan.client_state)
            places = [(parameter, name) for parameter in own.parameters() for name in plan.kept]
            for (parameter, name), value in zip(places, kept or [], strict=False):
                optimizer.state[parameter][name] = value.clone()
            for step, batch in enumerate(plan.batches(client, number, taken[client])):
                optimizer.zero_grad()
                loss = F.cross_entropy(own(inputs[batch]), plan.labels(targets[batch], client, first_step + step))
                loss.backward()
                if plan.clip_norm is not None:
                    nn.utils.clip_grad_norm_(own.parameters(), plan.clip_norm)
                optimizer.step()
                found += [loss.item()] * len(batch)
            taken[client] += plan.work(client, number)
            ends.append(nn.utils.parameters_to_vector(own.parameters()).detach())
            if places:
                moments[client] = [optimizer.state[parameter][name].double() for parameter, name in places]
                ended.append(moments[client])
        losses.append(sum(found) / max(len(found), 1))
        if cohort:
            weights = plan.weights(cohort)
            mean = sum((weight * end for weight, end in zip(weights, ends, strict=True)), torch.zeros_like(row))
            if ended:
                average = [
                    sum(w * own[at] for w, own in zip(weights, ended, strict=True)) for at in range(len(ended[0]))
                ]  # type: ignore[misc]
            row = server(row, mean, rate)
        watch(number, dict(zip(cohort, ends, strict=True)), row)
    return row, losses


def server_of(name: str, **settings: Any) -> Callable[[Tensor, Tensor, float], Tensor]:
    """A server optimizer with the settings' names without `server_`, from the papers' equations."""
    state: dict[str, Any] = {"m": 0.0, "v": settings.get("accumulator", settings.get("tau", 0.0) ** 2), "t": 0}

    def step(x: Tensor, mean: Tensor, rate: float) -> Tensor:
        d, state["t"] = mean - x, state["t"] + 1
        lr = settings.get("lr", 1.0)
        if name == "none":
            return mean
        if name == "sgd":
            return x + lr * d
        if name in ("momentum", "nesterov"):
            b = settings["momentum"]
            state["m"] = b * state["m"] - d
            return x - lr * (b * state["m"] - d if name == "nesterov" else state["m"])
        if name == "slowmo":
            state["m"] = settings["momentum"] * state["m"] + (x - mean) / rate
            return x - lr * rate * state["m"]
        b1, b2 = settings["beta1"], settings.get("beta2", 0.0)
        state["m"] = b1 * state["m"] + (1 - b1) * d
        state["v"] = {
            "adam": lambda v: b2 * v + (1 - b2) * d**2,
            "yogi": lambda v: v - (1 - b2) * d**2 * torch.sign(v - d**2),
            "adagrad": lambda v: v + d**2,
        }[name](state["v"])
        m, v = state["m"], state["v"]
        if settings.get("bias_correction"):
            m, v = m / (1 - b1 ** state["t"]), v / (1 - b2 ** state["t"])
        return x + lr * m / (torch.sqrt(v) + settings["tau"])

    return step
