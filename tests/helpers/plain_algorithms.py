"""Algorithms in plain torch, client by client, from their equations: the judge of --algorithm.

It shares nothing with fastlocal; the clients, their batches and weights are those of `plain_federated.Federation`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .plain_federated import Federation


@dataclass(frozen=True)
class Rules:
    """Settings of an algorithm, under their own names."""

    algorithm: str
    prox_mu: float = 0.0
    feddyn_alpha: float = 0.0
    correction_at: str = "gradient"
    nesterov: bool = False
    wd: float = 0.0


def flat(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def gradient_weight(steps: int, rate: float, rules: Rules, momentum: float) -> float:
    """The sum of the weights with which the gradients of a client entered its change, by derivatives."""
    gradients = torch.ones(steps, dtype=torch.float64, requires_grad=True)
    x, velocity = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for k in range(steps):
        pull = rules.prox_mu * x
        g = gradients[k] + (pull if rules.correction_at == "gradient" else 0)
        velocity = momentum * velocity + g
        change = g + momentum * velocity if rules.nesterov else velocity
        x = x - rate * (change + (pull if rules.correction_at == "step" else 0))
    (weights,) = torch.autograd.grad(x, gradients)
    return -float(weights.sum())


def terms(rules: Rules, away: Tensor, shared: Tensor, own: Tensor, alpha: float) -> Tensor:
    """Return the terms that the algorithm adds to the gradient of a client that is `away` from its start."""
    if rules.algorithm in ("fedprox", "fednova"):
        return rules.prox_mu * away
    if rules.algorithm == "scaffold":
        return shared - own
    return alpha * (away + own)


def train(
    module: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    plan: Federation,
    rules: Rules,
    server: Callable[[Tensor, Tensor, float], Tensor],
) -> Tensor:
    """Return the flat global model."""
    x, population = flat(module), len(plan.owned)
    own: dict[int, Tensor] = {client: torch.zeros_like(x) for client in range(population)}
    shared, momenta = torch.zeros_like(x), {}
    sizes = [float(len(mine)) for mine in plan.owned]
    taken = [0] * population
    for number in range(1, plan.rounds + 1):
        cohort, ends = plan.cohort(number), {}
        rate = plan.lr * plan.factor(number)
        for client in cohort:
            share = sizes[client] / sum(sizes) if plan.client_weights == "examples" else 1 / population
            alpha = rules.feddyn_alpha / (population * share)
            local = copy.deepcopy(module)
            nn.utils.vector_to_parameters(x.clone(), local.parameters())
            options = {"lr": rate, "momentum": plan.momentum, "nesterov": rules.nesterov, "weight_decay": rules.wd}
            optimizer = torch.optim.SGD(local.parameters(), **options)
            for parameter, buffer in zip(local.parameters(), momenta.get(client, []), strict=False):
                optimizer.state[parameter]["momentum_buffer"] = buffer
            for batch in plan.batches(client, number, taken[client]):
                optimizer.zero_grad()
                F.cross_entropy(local(inputs[batch]), targets[batch]).backward()
                if plan.clip_norm is not None:
                    nn.utils.clip_grad_norm_(local.parameters(), plan.clip_norm)
                extra = terms(rules, flat(local) - x, shared, own[client], alpha)
                parts = extra.split([parameter.numel() for parameter in local.parameters()])
                if rules.correction_at == "gradient":
                    for parameter, part in zip(local.parameters(), parts, strict=True):
                        parameter.grad += part.view_as(parameter)
                optimizer.step()
                if rules.correction_at == "step":
                    with torch.no_grad():
                        for parameter, part in zip(local.parameters(), parts, strict=True):
                            parameter -= rate * part.view_as(parameter)
            taken[client] += plan.work(client, number)
            if plan.client_state == "keep":
                momenta[client] = [optimizer.state[one]["momentum_buffer"] for one in local.parameters()]
            ends[client] = flat(local)
        if not cohort:
            continue
        p = dict(zip(cohort, plan.weights(cohort), strict=True))
        steps = {client: plan.work(client, number) for client in cohort}
        mean = sum(p[client] * ends[client] for client in cohort)
        if rules.algorithm == "fednova":
            a = {client: gradient_weight(steps[client], rate, rules, plan.momentum) for client in cohort}
            whole = sum(p[client] * a[client] for client in cohort)
            mean = x + whole * sum(p[client] * (ends[client] - x) / a[client] for client in cohort)
        if rules.algorithm == "scaffold":
            change = {client: (x - ends[client]) / (steps[client] * rate) - shared for client in cohort}
            own |= {client: own[client] + change[client] for client in cohort}
            shared = shared + sum(change.values()) / population
        if rules.algorithm == "feddyn":
            own |= {client: own[client] + ends[client] - x for client in cohort}
            mean = sum(ends.values()) / len(ends) + sum(own.values()) / population
        x = server(x, mean, rate)
    return x
