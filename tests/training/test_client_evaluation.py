"""Evaluation by client, against a plain loop over clients and their samples."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlocal
from tests.helpers.plain_federated import Federation, held_out, server_of, train
from tests.training.test_populations import INPUTS, PARTS, TARGETS, start

FRACTION, SEED = 0.3, 5
PLAN: dict[str, Any] = {"clients": 4, "rounds": 4, "local_steps": 3, "batch_size": 4, "lr": 0.1, "momentum": 0.9}
OWNED = [PARTS.samples_of(client).tolist() for client in range(PARTS.clients)]
TESTS = held_out(OWNED, FRACTION, SEED)


def expected() -> dict[int, dict[int, tuple[int, list[float], list[float] | None]]]:
    """{round: {client: (samples, loss and accuracy of the global model, those of its own)}} of all clients."""
    left = [[sample for sample in mine if sample not in tests] for mine, tests in zip(OWNED, TESTS, strict=True)]
    found: dict[int, dict[int, tuple[int, list[float], list[float] | None]]] = {}

    def score(row: Tensor, client: int) -> list[float]:
        module = copy.deepcopy(start())
        nn.utils.vector_to_parameters(row, module.parameters())
        with torch.no_grad():
            pairs = [(module(INPUTS[sample]), TARGETS[sample]) for sample in TESTS[client]]
        losses = [F.cross_entropy(outputs, target).item() for outputs, target in pairs]
        return [math.fsum(losses) / len(pairs), sum(bool(o.argmax() == t) for o, t in pairs) / len(pairs)]

    def watch(number: int, ends: dict[int, Tensor], row: Tensor) -> None:
        found[number] = {
            client: (len(tests), score(row, client), score(ends[client], client) if client in ends else None)
            for client, tests in enumerate(TESTS)
            if tests
        }

    train(start(), INPUTS, TARGETS, Federation(left, seed=SEED, **PLAN), server_of("none"), watch)
    return found


def run(directory: Path, **settings: Any) -> list[dict[str, Any]]:
    data = (INPUTS, TARGETS)
    fixed = PLAN | {"seed": SEED, "eval_every": 2, "eval_clients": 2, "client_test": FRACTION, "precision": "fp64"}
    settings = fixed | {"partition": PARTS, "executor": "stacked", "progress": False} | settings
    return fastlocal.train(start(), data, data, directory=directory, **settings).history


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "clients.jsonl").read_text().splitlines()]


def test_as_a_loop_over_samples(tmp_path: Path) -> None:
    """Whatever the executor, the chunk and the source; the statistics are those of the lines."""
    judged = expected()
    assert any(not tests for tests in TESTS) or min(map(len, TESTS)) < max(map(len, TESTS))
    for executor, chunk, more in (
        ("stacked", None, {"eval_clients_of": "all"}),
        ("looped", 3, {}),
        ("threaded", 2, {}),
        ("stacked", 1, {"source": "torch", "nw": 1}),
    ):
        directory = tmp_path / f"{executor}{chunk}"
        history = run(directory, executor=executor, chunk=chunk, **more)
        found = lines(directory)
        assert [row["comm_round"] for row in history] == [2, 4]
        for row in history:
            number = row["comm_round"]
            mine = [line for line in found if line["round"] == number]
            clients = {
                client: scores
                for client, scores in judged[number].items()
                if "eval_clients_of" in more or scores[2] is not None
            }
            assert [line["client"] for line in mine] == sorted(clients)
            for line in mine:
                samples, scores, own = clients[line["client"]]
                assert line["samples"] == samples
                assert [line["loss"], line["acc1"]] == pytest.approx(scores, abs=1e-10)
                if own is None:
                    assert line["own_loss"] is line["own_acc1"] is None
                else:
                    assert [line["own_loss"], line["own_acc1"]] == pytest.approx(own, abs=1e-10)
            accuracies = [line["acc1"] for line in mine]
            total = sum(line["samples"] for line in mine)
            assert row["client_acc1"] == pytest.approx(sum(accuracies) / len(mine))
            assert row["client_weighted_acc1"] * total == pytest.approx(
                sum(line["samples"] * line["acc1"] for line in mine)
            )
            assert row["client_worst_acc1"] == min(accuracies)  # a tenth of at most nine clients is one
            assert row["own_acc1"] == pytest.approx(
                sum(line["own_acc1"] for line in mine if line["own_acc1"] is not None)
                / sum(line["own_acc1"] is not None for line in mine)
            )
