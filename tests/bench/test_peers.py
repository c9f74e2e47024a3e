"""The comparison with peers: what everybody trains is the same, and what differs gets no time."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import pytest

from bench.peers import environments, turns
from bench.peers.__main__ import row
from bench.peers.limits import products
from bench.peers.sides.nets import torch_module
from bench.peers.systems import LOOP, SYSTEMS, System
from bench.peers.workloads import WORKLOADS, write_files

SMALL = dataclasses.replace(
    WORKLOADS[0], net="logistic", clients=3, population=5, samples_per_client=8, batch=4, local_steps=2, momentum=0.0
)
LIMITS = {"pairs": 1, "turn_s": 0.0, "most_s": 1.0}


@pytest.mark.parametrize(
    ("net", "n_params"), [("2nn", 199_210), ("simple_cnn", 1_626_442), ("femnist_cnn", 1_206_590), ("mlp", 101_770)]
)
def test_models_have_the_published_sizes(net: str, n_params: int) -> None:
    assert sum(value.numel() for value in torch_module(net).parameters()) == n_params


def test_products_of_a_step_are_found() -> None:
    assert [len(products(workload)) for workload in WORKLOADS[:2]] == [2 + 3, 3 + 4]  # forward, then backward


def test_steps_of_a_round_are_whole_epochs_of_what_a_client_owns() -> None:
    for workload in WORKLOADS:
        assert workload.batch * workload.local_steps % workload.samples_per_client == 0


def test_systems_train_what_the_loop_trains(tmp_path: Path) -> None:
    write_files(SMALL, tmp_path)
    expected = turns.expected_losses(SMALL, sys.executable, tmp_path)
    own, per_core, post_local, *_ = SYSTEMS
    with turns.Side(System(LOOP, "loop_rounds.py"), sys.executable, SMALL, tmp_path) as loop:

        def compare(system: System, expected: dict[str, float]) -> turns.Comparison:
            return turns.compare(system, sys.executable, loop, SMALL, tmp_path, expected, **LIMITS)

        found = compare(own, expected)
        assert found.fault == "" and found.loss == pytest.approx(expected["kept"], abs=1e-6)
        shown = row(SMALL, found)
        assert float(shown["ratio"]) > 0 and shown["pairs"] == "1"
        wrong = compare(per_core, {name: loss + 1e-3 for name, loss in expected.items()})
        assert wrong.loss == pytest.approx(expected["kept"], abs=1e-6)
        assert "its loss is" in wrong.fault and not wrong.own_s and row(SMALL, wrong)["ratio"] == ""
        ended = compare(System("ended", "nets.py"), expected)
        assert ended.fault.startswith("its process ended") and math.isnan(ended.loss)
    assert "no cohorts" in post_local.refusal(SMALL) and not own.refusal(SMALL)


def test_an_environment_without_its_python_is_said(tmp_path: Path) -> None:
    with pytest.raises(environments.Missing, match=r"needs Python 3\.99"):
        environments.make("peer", environments.Environment((), python="3.99"), tmp_path)
    assert not list(tmp_path.iterdir())
