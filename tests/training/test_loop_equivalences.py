"""Runs that must come out the same however they are cut up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastlocal.config.schema import RunConfig
from fastlocal.data.types import DataSet
from fastlocal.params.losses import cross_entropy
from fastlocal.runs.build import build_run
from fastlocal.runs.run import final_model, train
from fastlocal.telemetry.base import Logger, RoundReport
from fastlocal.training.loop import Loop
from tests.helpers import small_models

RUN: dict[str, Any] = {
    "batch_size": 4,
    "total_batch_size": 20,
    "start_lr": None,
    "client_lr": 0.1,
    "wd": 0.02,
    "epochs": 4,
    "steps_per_epoch": 3,
    "step1": 2,
    "decay1": 100,
    "decay2": 100,
    "aug": True,
    "seed": 3,
    "device": "cpu",
    "precision": "fp64",
}


def run(folder: Path, module: nn.Module, data: DataSet, *loggers: Logger, **values: Any) -> Loop:
    config = RunConfig().with_values(**{**RUN, "log_pth": str(folder), **values})
    ready = build_run(config, data, lambda: module, cross_entropy, model_flag="model")
    return train(ready, overwrite=False, make_loggers=lambda path: list(loggers))


def model_of(loop: Loop) -> dict[str, Tensor]:
    return final_model(loop).state_dict()


def assert_same(one: Loop, other: Loop, tolerance: float) -> None:
    for name, value in model_of(one).items():
        torch.testing.assert_close(value, model_of(other)[name], rtol=tolerance, atol=tolerance)
    assert len(one.history) == len(other.history) > 0
    for row, other_row in zip(one.history, other.history, strict=True):
        assert row == pytest.approx(other_row, rel=tolerance, abs=tolerance)


HARD = {"momentum": 0.9, "nesterov": True, "label_noise": True, "noise_p": 0.3}


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("name", ["batchnorm", "groupnorm"])
def test_chunks_and_executors_do_not_matter(name: str, replacement: bool, tmp_path: Path) -> None:
    kinds = [(executor, chunk) for executor in ("stacked", "looped") for chunk in (1, 2, 5)]
    loops = [
        run(
            tmp_path / f"{executor}_{chunk}",
            small_models.make(name),
            small_models.images(),
            executor=executor,
            chunk=chunk,
            replacement=replacement,
            **HARD,
        )
        for executor, chunk in kinds
    ]
    for other in loops[1:]:
        assert_same(loops[0], other, 1e-9)


@pytest.mark.parametrize("executor", ["stacked", "looped"])
@pytest.mark.parametrize("name", ["perceptron", "groupnorm"])
def test_averaging_every_step_of_plain_sgd_is_large_batch_sgd(name: str, executor: str, tmp_path: Path) -> None:
    data = small_models.images()
    values: dict[str, Any] = {"step1": 1, "aug": False, "executor": executor, "group_weight": True}
    many = run(tmp_path / "many", small_models.make(name), data, chunk=2, **values)
    one = run(tmp_path / "one", small_models.make(name), data, batch_size=20, **values)
    assert_same(many, one, 1e-9)


def test_momentum_makes_local_and_large_batch_sgd_differ_only_by_rounding_at_h_1(tmp_path: Path) -> None:
    # the mean of the clients' momenta is the large batch's momentum, as both are linear in the gradients
    data, values = small_models.images(), {"step1": 1, "aug": False, "momentum": 0.9, "nesterov": True}
    many = run(tmp_path / "many", small_models.make("perceptron"), data, chunk=3, **values)
    one = run(tmp_path / "one", small_models.make("perceptron"), data, batch_size=20, **values)
    assert_same(many, one, 1e-9)


def test_local_steps_make_a_difference(tmp_path: Path) -> None:
    data = small_models.images()
    loops = [run(tmp_path / str(h), small_models.make("perceptron"), data, step1=h) for h in (1, 2)]
    with pytest.raises(AssertionError):
        assert_same(loops[0], loops[1], 1e-6)


@pytest.mark.parametrize("executor", ["stacked", "looped"])
def test_a_run_repeats_to_the_bit(executor: str, tmp_path: Path) -> None:
    loops = [
        run(tmp_path / name, small_models.make("batchnorm"), small_models.images(), executor=executor, **HARD)
        for name in ("first", "second")
    ]
    assert_same(loops[0], loops[1], 0.0)


class Dropping(nn.Module):
    """A linear layer behind dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(90, 4)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(nn.functional.dropout(x.flatten(1), 0.5, self.training))


@pytest.mark.parametrize("executor", ["stacked", "looped"])
def test_dropout_repeats_whatever_was_drawn_before(executor: str, tmp_path: Path) -> None:
    loops = []
    for name in ("first", "second"):
        torch.rand(5)
        loops.append(run(tmp_path / name, Dropping(), small_models.images(), executor=executor, chunk=2))
    assert_same(loops[0], loops[1], 0.0)
    other = run(tmp_path / "other", Dropping(), small_models.images(), executor=executor, chunk=2, seed=4)
    with pytest.raises(AssertionError):
        assert_same(loops[0], other, 1e-6)


def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    """Without momentum, which makes the roundings of one step grow in later ones."""
    begun = torch.cat([value.flatten() for value in small_models.make("perceptron").state_dict().values()])
    loops = [
        run(tmp_path / name, small_models.make("perceptron"), small_models.images(), precision=name, executor="stacked")
        for name in ("fp32", "bf16")
    ]
    full, low = (torch.cat([value.flatten() for value in model_of(loop).values()]) for loop in loops)
    assert low.dtype == torch.float32
    # 2**-9 for each rounding: of weights, inputs, hidden values, outputs, and of the gradients of the last two
    assert 0 < (full - low).norm() < 6 * 2**-9 * (full - begun).norm()
    assert loops[1].history[-1]["train_loss"] == pytest.approx(loops[0].history[-1]["train_loss"], rel=6 * 2**-9)


class Recorder(Logger):
    """Keeps what a run reports."""

    def __init__(self) -> None:
        self.rounds: list[RoundReport] = []
        self.rows: list[dict[str, Any]] = []
        self.files: list[str] = []

    def round(self, report: RoundReport) -> None:
        self.rounds.append(report)

    def evaluation(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def checkpoint(self, path: Path) -> None:
        self.files.append(path.name)


def test_steps_left_over_are_trained_and_not_averaged(tmp_path: Path) -> None:
    seen = Recorder()
    data = small_models.images()
    loop = run(tmp_path / "run", small_models.make("batchnorm"), data, seen, step1=5, epochs=4)
    found = [(one.local_steps, one.comm_round, one.samples) for one in seen.rounds]
    assert found == [(5, 1, 100), (5, 2, 100), (2, 3, 40)]
    assert loop.comm_round == len(loop.history) == 2
    latest = torch.load(tmp_path / "run" / "latest.pt", weights_only=True)
    assert all(torch.equal(value, latest[name]) for name, value in model_of(loop).items())


def test_train_statistics_are_over_all_samples_since_the_last_evaluation(tmp_path: Path) -> None:
    seen = Recorder()
    data = small_models.images()
    run(tmp_path / "run", small_models.make("perceptron"), data, seen, step1=2, eval_freq1=3, label_noise=True)
    assert [one.samples for one in seen.rounds] == [40] * 6
    for row, rounds in zip(seen.rows, (seen.rounds[:3], seen.rounds[3:]), strict=True):
        assert row["train_loss"] == pytest.approx(sum(one.train_loss for one in rounds) / 3, rel=1e-12)
        assert row["train_acc1"] == pytest.approx(sum(one.train_acc1 or 0.0 for one in rounds) / 3, rel=1e-12)


def test_a_run_in_which_nothing_is_evaluated_ends_well(tmp_path: Path) -> None:
    loop = run(tmp_path / "run", small_models.make("batchnorm"), small_models.images(), eval_freq1=1000)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "" and loop.history == []
    assert int(model_of(loop)["norm1.num_batches_tracked"]) == 12 + 15


def test_a_run_shorter_than_its_first_round_keeps_the_start_weights(tmp_path: Path) -> None:
    seen = Recorder()
    loop = run(tmp_path / "run", small_models.make("groupnorm"), small_models.images(), seen, step1=100)
    assert [(one.local_steps, one.comm_round, one.samples) for one in seen.rounds] == [(12, 1, 240)]
    start = small_models.make("groupnorm").state_dict()
    assert all(torch.equal(value, start[name]) for name, value in model_of(loop).items())
    assert seen.rows == [] and seen.files == []


def test_one_sample_per_client_and_one_class_too_few_for_top_5(tmp_path: Path) -> None:
    loop = run(
        tmp_path / "run",
        small_models.make("perceptron"),
        small_models.images(),
        batch_size=1,
        schedule="epochs",
        eval_freq1=2,
    )
    assert all(row["val_acc5"] == 1.0 and row["train_acc5"] == 1.0 for row in loop.history)
