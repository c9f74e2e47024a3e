from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fastlocal.telemetry.jsonl import JsonlLogger, StepLog


def _strict_lines(path: Path) -> list[Any]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_metrics_exist_and_are_empty_before_the_first_evaluation(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("left by an earlier run\n")
    logger = JsonlLogger(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    logger.close()


def test_each_evaluation_can_be_read_back_exactly_while_the_run_goes_on(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path)
    rows = [
        {"comm_round": 1, "train_loss": 0.1 + 0.2, "val_acc1": 1 / 3, "lr": 1e-300},
        {"comm_round": 2, "train_loss": math.pi, "val_acc1": None, "lr": 0.32},
    ]
    for count, row in enumerate(rows, start=1):
        logger.evaluation(row)
        assert _strict_lines(tmp_path / "metrics.jsonl") == rows[:count]
    assert list(_strict_lines(tmp_path / "metrics.jsonl")[0]) == list(rows[0])
    logger.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_has_not_become_null(tmp_path: Path, value: float) -> None:
    logger = JsonlLogger(tmp_path)
    logger.evaluation({"comm_round": 1, "train_loss": value})
    logger.close()
    assert _strict_lines(tmp_path / "metrics.jsonl") == [{"comm_round": 1, "train_loss": None}]


def test_steps(tmp_path: Path) -> None:
    log = StepLog(tmp_path)
    log.write((step, client, 0.1, 1 / (1 + step + client)) for step in range(2) for client in range(3))
    steps = _strict_lines(tmp_path / "steps.jsonl")  # readable before the log is closed
    assert len(steps) == 6
    assert steps[4] == {"step": 1, "client": 1, "rate": 0.1, "loss": 1 / 3}
    log.write([(2, 0, 0.05, math.nan)])
    log.close()
    assert _strict_lines(tmp_path / "steps.jsonl")[6:] == [{"step": 2, "client": 0, "rate": 0.05, "loss": None}]
