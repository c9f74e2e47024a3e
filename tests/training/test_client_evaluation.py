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

FRACTION, SEED = 0.15, 5
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


def test_as_a_loop_over_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers depend on no executor, chunk or source; the statistics are those of the lines."""
    judged, untested = expected(), sum(not tests for tests in TESTS)
    assert untested > 0
    for executor, chunk, more in (
        ("stacked", None, {"eval_clients_of": "all"}),
        ("looped", 3, {}),
        ("threaded", 2, {}),
        ("stacked", 1, {"source": "torch", "nw": 1}),
    ):
        directory = tmp_path / f"{executor}{chunk}"
        history = run(directory, executor=executor, chunk=chunk, progress=executor == "looped", **more)
        found = lines(directory)
        if executor == "looped":
            assert f"{untested} of 9 clients have too few samples to hold one out" in capsys.readouterr().err
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
                    assert not {"own_loss", "own_acc1"} & line.keys()
                else:
                    assert [line["own_loss"], line["own_acc1"]] == pytest.approx(own, abs=1e-10)
            accuracies = [line["acc1"] for line in mine]
            total = sum(line["samples"] for line in mine)
            assert row["client_acc1"] == pytest.approx(sum(accuracies) / len(mine))
            assert row["client_weighted_acc1"] * total == pytest.approx(
                sum(line["samples"] * line["acc1"] for line in mine)
            )
            assert row["client_worst_acc1"] == min(accuracies)  # a tenth of at most nine clients is one
            own_accuracies = [line["own_acc1"] for line in mine if "own_acc1" in line]
            assert row["own_acc1"] == pytest.approx(sum(own_accuracies) / len(own_accuracies))


def test_batchnorm_with_the_statistics_of_the_global_model(tmp_path: Path) -> None:
    """The saved model, evaluated by hand, has the lines of the last evaluation; own models have the same statistics."""
    images = INPUTS.repeat(1, 6).view(-1, 1, 6, 6)
    data, kept = (images, TARGETS), []
    for executor in ("stacked", "looped"):
        torch.manual_seed(1)
        layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
        settings = PLAN | {"seed": SEED, "eval_every": 2, "eval_clients": 2, "precision": "fp64", "bn_batches": 3}
        result = fastlocal.train(
            nn.Sequential(*layers), data, data, partition=PARTS, executor=executor, chunk=3 if kept else None,
            directory=tmp_path / executor, progress=False, **settings,
        )  # fmt: skip
        kept.append(lines(tmp_path / executor))
    for one, other in zip(*kept, strict=True):
        assert one == pytest.approx(other, abs=1e-9)
    tests = fastlocal.partition.load(tmp_path / "stacked" / "client_test.npz")
    last = [line for line in kept[1] if line["round"] == 4]
    assert len(last) >= 3 and len({line["own_loss"] for line in last}) == len(last)
    for line in last:
        mine = torch.from_numpy(tests.samples_of(line["client"]))
        with torch.no_grad():
            outputs = result.model(images[mine])
        assert line["loss"] == pytest.approx(F.cross_entropy(outputs, TARGETS[mine]).item(), abs=1e-9)
        assert line["acc1"] == pytest.approx((outputs.argmax(1) == TARGETS[mine]).double().mean().item())
    # at rate 0 an own model is the global one of the round's start, with its statistics
    still = fastlocal.train(
        nn.Sequential(*layers), data, data, partition=PARTS, directory=tmp_path / "still", progress=False,
        **settings | {"lr": 0.0, "bn_batches": 30},
    )  # fmt: skip
    assert still.history[-1]["own_loss"] == pytest.approx(still.history[-1]["client_loss"], rel=0.05)
    assert still.history[0]["own_loss"] == pytest.approx(still.history[0]["client_loss"], rel=0.05)
