"""Mistakes about algorithms: status 2, one line, nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlocal
from tests.helpers.command_line import run, tree
from tests.helpers.refusals import assert_refused

OWN = "--partition iid --rounds 3 --client-lr 0.1"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--algorithm scafold", ("--algorithm scafold", "'scaffold'", "fedavg, feddyn, fednova, fedprox, scaffold")),
        ("--algorithm python", ("--algorithm python", "is unknown")),
        ("--prox-mu 0.1", ("--prox-mu 0.1", "--algorithm fedavg", "no setting")),
        ("--algorithm fedprox --feddyn-alpha 0.1", ("--feddyn-alpha 0.1", "fedprox", "--prox-mu")),
        ("--algorithm fedprox --prox-mu -1", ("--prox-mu -1", "0 or more")),
        ("--algorithm fedprox --prox-mu nan", ("--prox-mu nan", "finite")),
        ("--algorithm feddyn --feddyn-alpha inf", ("--feddyn-alpha inf", "finite")),
        ("--algorithm fedprox --correction-at momentum", ("--correction-at momentum", "gradient", "step")),
        ("--algorithm fedavg --correction-at step", ("--correction-at step", "--algorithm fedavg")),
        ("--algorithm fedprox --correction-at step --client-optimizer adamw", ("--correction-at step", "adamw")),
        ("--algorithm scaffold --client-optimizer adamw", ("--algorithm scaffold", "adamw", "sgd")),
        ("--algorithm fednova --client-optimizer adamw", ("--algorithm fednova", "adamw", "linear")),
        (f"{OWN} --algorithm fednova --client-state keep", ("--client-state keep", "fednova", "reset")),
        ("--algorithm feddyn --server-optimizer adam", ("--server-optimizer adam", "feddyn")),
        (f"{OWN} --algorithm scaffold --cohort-sampling replacement", ("scaffold", "replacement", "twice")),
        ("--algorithm scaffold --executor threaded", ("--executor threaded", "--algorithm", "stacked or looped")),
    ],
)
def test_one_line(
    words: str,
    says: tuple[str, ...],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    good = ["train", "--dataset", "npz", "--data-pth", data, "--log-pth", "run", "--device", "cpu", "--batch-size", "8"]
    assert_refused(run(capsys, *good, "--clients", "2", *words.split()), says)
    assert tree(tmp_path) == set()


class Wrong(fastlocal.Algorithm):
    def __init__(self, method: str, value: Any) -> None:
        self.method, self.value = method, value

    def init(self, start: Tensor) -> Any:
        return self.value if self.method == "init" else fastlocal.AlgorithmState()


class WrongGradient(Wrong):
    def gradient(self, grads: Tensor, rows: Tensor, start: Tensor, state: fastlocal.AlgorithmState) -> Any:
        return self.value


class WrongFinish(Wrong):
    def finish(self, rows: Tensor, start: Tensor, state: fastlocal.AlgorithmState) -> Any:
        return self.value


class WrongServer(Wrong):
    def server(self, row: Tensor, update: Tensor, state: fastlocal.AlgorithmState) -> Any:
        return row[:3] if self.value is None else self.value


@pytest.mark.parametrize(
    ("algorithm", "says"),
    [
        (Wrong("init", None), "init returned a NoneType"),
        (Wrong("init", fastlocal.AlgorithmState(clients={"c": 1.0})), "init has a float as 'c', not a tensor"),  # type: ignore[dict-item]
        (Wrong("init", fastlocal.AlgorithmState(sums={"c": torch.zeros(2)})), r"has shape \[2\]"),
        (WrongGradient("", None), "gradient returned a NoneType"),
        (WrongGradient("", torch.zeros(3)), r"gradient returned torch.float32 of shape \[3\]"),
        (WrongGradient("", torch.zeros(2, 8).long()), "gradient returned torch.int64"),
        (Wrong("init", fastlocal.AlgorithmState(clients=None)), "clients of init is a NoneType"),  # type: ignore[arg-type]
        (WrongFinish("", torch.zeros(3)), "what finish returned is a Tensor"),
        (WrongServer("", 3), "server returned a int"),
        (WrongFinish("", {"c": torch.zeros(3)}), "finish returned the sums c; those of init are none"),
        (WrongServer("", None), r"server returned torch.float32 of shape \[3\], not numbers of shape \[8\]"),
        (Wrong, "give a name or an object"),
    ],
)
def test_ones_own_algorithm(algorithm: Any, says: str, tmp_path: Path) -> None:
    data = torch.randn(12, 3), torch.arange(12) % 2
    with pytest.raises(ValueError, match=says):
        fastlocal.train(
            nn.Linear(3, 2), data, data, clients=2, batch_size=2, rounds=1, algorithm=algorithm, progress=False,
            directory=tmp_path / "run",
        )  # fmt: skip
