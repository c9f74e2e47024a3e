"""Results of an evaluation by client, and their statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

WORST = 0.1
"""Share of the clients whose mean is the worst decile."""


class ClientResult(NamedTuple):
    """Loss and accuracy of one model on the held-out samples of one client.

    Attributes:
        client: Number of the client.
        samples: Number of its held-out samples.
        loss: Loss of its samples, as of training.evaluation.Evaluation.
        accuracy: Fraction of correct predictions; None if the targets are not labels.
    """

    client: int
    samples: int
    loss: float
    accuracy: float | None


def statistics_of(results: Sequence[ClientResult], model: str) -> dict[str, float]:
    """Return the statistics over clients that metrics.jsonl shows; empty without clients.

    Args:
        results: Results of the clients.
        model: Prefix of the names, client (the global model) or own.

    Returns:
        Mean, mean weighted by samples, and of accuracies the mean of the worst tenth of the clients.
    """
    if not results:
        return {}
    samples, losses = [one.samples for one in results], [one.loss for one in results]
    found = {}
    accuracies = sorted(one.accuracy for one in results if one.accuracy is not None)
    if accuracies:
        worst = accuracies[: math.ceil(WORST * len(accuracies))]
        weighted = sum(one.samples * one.accuracy for one in results if one.accuracy is not None)
        found[f"{model}_acc1"] = math.fsum(accuracies) / len(accuracies)
        found[f"{model}_weighted_acc1"] = weighted / sum(samples)
        found[f"{model}_worst_acc1"] = math.fsum(worst) / len(worst)
    found[f"{model}_loss"] = sum(losses) / len(losses)
    weighted = sum(count * loss for count, loss in zip(samples, losses, strict=True))
    return found | {f"{model}_weighted_loss": weighted / sum(samples)}


def rows_of(
    comm_round: int, results: Sequence[ClientResult], own_results: Sequence[ClientResult]
) -> list[dict[str, Any]]:
    """Return the lines of clients.jsonl of one evaluation.

    Args:
        comm_round: Communication rounds so far.
        results: Results of the global model.
        own_results: Results of the own models of the clients that took part in the round.
    """
    own = {one.client: one for one in own_results}
    rows = []
    for one in results:
        row: dict[str, Any] = {"round": comm_round, "client": one.client, "samples": one.samples}
        row |= {"loss": one.loss, "acc1": one.accuracy}
        if one.client in own:
            row |= {"own_loss": own[one.client].loss, "own_acc1": own[one.client].accuracy}
        rows.append(row)
    return rows
