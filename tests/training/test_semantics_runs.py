"""Whole runs of every kind, against the same run in plain torch, in float64."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastlocal.config.schema import RunConfig
from fastlocal.data.types import DataSet
from fastlocal.params.losses import cross_entropy
from fastlocal.runs.build import PreparedRun, build_run
from fastlocal.runs.run import train
from tests.helpers import small_models
from tests.helpers.plain_program import PlainProgram, PlainRun

RUN: dict[str, Any] = {
    "batch_size": 4,
    "total_batch_size": 12,
    "start_lr": 0.05,
    "wd": 0.01,
    "epochs": 3,
    "steps_per_epoch": 5,
    "decay1": 100,
    "decay2": 100,
    "decay3": 100,
    "step1": 3,
    "step2": 3,
    "step3": 3,
    "save_freq1": 1,
    "aug": False,
    "seed": 3,
    "device": "cpu",
    "precision": "fp64",
    "debug": True,
    "resume_pth": "start.pt",
}
MOMENTUM = {"momentum": 0.9}
NESTEROV = {"momentum": 0.8, "nesterov": True, "group_weight": True}
PHASES = {"step1": 2, "step2": 1, "step3": 4, "decay1": 1, "decay2": 2, "epochs": 4, "warm_up": True, "resume": 2}
FREQUENCIES = {"eval_freq1": 2, "eval_freq2": 3, "save_freq1": 4, "save_freq2": 1, "save_freq3": 2}
EPOCHS = {"schedule": "epochs", "start_lr": None, "lr": 2.0, "decay1": 1, "decay2": 2, "decay3": 3, "epochs": 4}
QSR = {"sync": "qsr", "qsr_alpha": 0.2, "h_min": 2, "lr_schedule": "cosine", "epochs": 4, "post_local_from": 1}
QSR_DECAYS = {"lr_schedule": "constant", "decay1": 1, "gamma": 0.5}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("perceptron", {}),
    "leftover": ("perceptron", {"step1": 4, **MOMENTUM}),
    "one_client": ("groupnorm", {"total_batch_size": 4, **MOMENTUM}),
    "many_clients": ("perceptron", {"batch_size": 1, "total_batch_size": 9, **NESTEROV}),
    "whole_epoch": ("perceptron", {"batch_size": 5, "total_batch_size": 20, "steps_per_epoch": None, "step1": 7}),
    "nesterov": ("groupnorm", NESTEROV),
    "clipped": ("groupnorm", {"clip_norm": 0.7, **NESTEROV}),
    "augmented": ("groupnorm", {"aug": True, **MOMENTUM}),
    "phases": ("groupnorm", {**PHASES, **FREQUENCIES, **NESTEROV, "eval_on_start": True}),
    "coinciding_decays": ("perceptron", {**PHASES, "decay2": 1, "max_lr": 0.3, "warmup_epochs": 2, **MOMENTUM}),
    "reversed_decays": ("perceptron", {**PHASES, "decay1": 3, "decay2": 2, "step1": 5}),
    "by_rounds": ("perceptron", {"rounds": 7, "epochs": 1, **MOMENTUM}),
    "qsr": ("groupnorm", {**QSR, **NESTEROV, "eval_on_start": True, "warm_up": True, "warmup_epochs": 1}),
    "qsr_decays": ("perceptron", {**QSR, **FREQUENCIES, **QSR_DECAYS, "rounds": 9}),
    "post_local": ("batchnorm", {**PHASES, **FREQUENCIES, "post_local_from": 2, "lr_schedule": "linear"}),
    "batchnorm": ("batchnorm", {"bn_batches": 4, **MOMENTUM}),
    "batchnorm_all": ("batchnorm", {"bn_batches": 400, "aug": True, "eval_on_start": True, "eval_freq1": 2}),
    "batchnorm_phases": ("batchnorm", {**PHASES, **FREQUENCIES, **NESTEROV, "bn_batches": 3}),
    "replacement": ("batchnorm", {"replacement": True, "steps_per_epoch": 7, "bn_batches": 5, **MOMENTUM}),
    "replacement_many": ("perceptron", {"replacement": True, "batch_size": 30, "total_batch_size": 150, "wd": 0.0}),
    "label_noise": ("groupnorm", {"label_noise": True, "noise_p": 0.4, "aug": True, **MOMENTUM}),
    "odd_module": ("odd", {"group_weight": True, **MOMENTUM}),
    "odd_module_without_groups": ("odd", {"wd": 0.05, **NESTEROV, "group_weight": False}),
    "words": ("words", {"wd": 0.05, **NESTEROV}),
    "epochs": ("batchnorm", {**EPOCHS, "step1": 4, "step2": 3, "step3": 7, "bn_batches": 3, **MOMENTUM}),
    "epochs_long_rounds": ("perceptron", {**EPOCHS, "step1": 12, "step2": 3, "save_freq1": 2, "resume": 4, **NESTEROV}),
    "epochs_fresh": ("perceptron", {**EPOCHS, "resume_pth": None, "resume": 9, "eval_on_start": True, "warm_up": True}),
}


def prepared(name: str, **values: Any) -> PreparedRun:
    data = small_models.sentences() if name == "words" else small_models.images()
    config = RunConfig().with_values(**{**RUN, **values})
    return build_run(config, data, lambda: small_models.make(name), cross_entropy, model_flag="model")


def plain(name: str, ready: PreparedRun) -> PlainRun:
    return PlainProgram(ready.config, data_of(ready, name), small_models.make(name)).train()


def data_of(ready: PreparedRun, name: str) -> DataSet:
    assert ready.data.name == ("sentences" if name == "words" else "images")
    return ready.data


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same(directory: Path, expected: PlainRun, init: str | None) -> None:
    steps = [tuple(row.values()) for row in lines(directory / "steps.jsonl")]
    assert [row[:2] for row in steps] == [row[:2] for row in expected.steps]
    for got, wanted in zip(steps, expected.steps, strict=True):
        assert got[2:] == pytest.approx(wanted[2:], rel=1e-9)

    metrics = lines(directory / "metrics.jsonl")
    assert len(metrics) == len(expected.metrics) > 0
    for row, wanted_row in zip(metrics, expected.metrics, strict=True):
        assert row == pytest.approx(wanted_row, rel=1e-9)

    names = {path.name for path in directory.glob("*.pt") if not path.name.startswith("resume.")}
    assert names == set(expected.files) | ({init} if init else set())
    for name, state in expected.files.items():
        got_state = torch.load(directory / name, weights_only=True)
        assert list(got_state) == list(state)
        for key, value in state.items():
            assert got_state[key].dtype == value.dtype
            assert torch.allclose(got_state[key], value, rtol=1e-10, atol=1e-12), (name, key)


BY_BOTH = ("nesterov", "clipped", "augmented", "post_local", "batchnorm", "replacement", "label_noise", "odd_module")
"""Cases of what the steps are; the others are of when which step is taken, for which one executor is enough."""


@pytest.mark.parametrize(
    ("case", "executor"),
    [
        (case, executor)
        for number, case in enumerate(CASES)
        for place, executor in enumerate(("stacked", "looped"))
        if case in BY_BOTH or number % 2 == place
    ],
)
def test_run_is_that_of_plain_torch(case: str, executor: str, tmp_path: Path) -> None:
    name, values = CASES[case]
    ready = prepared(name, **values, executor=executor, chunk=2, log_pth=str(tmp_path / "run"))
    expected = plain(name, ready)
    train(ready, overwrite=False, make_loggers=lambda path: [])
    init = f"{ready.progress.label}_init.pt"
    assert_same(tmp_path / "run", expected, init if ready.config.model.resume_pth is None else None)


def test_the_plain_run_notices_what_it_should() -> None:
    base = plain("groupnorm", prepared("groupnorm", **MOMENTUM))
    changes: list[dict[str, Any]] = [
        {"momentum": 0.0},
        {"nesterov": True},
        {"group_weight": True},
        {"clip_norm": 0.7},
        {"aug": True},
        {"label_noise": True},
        {"seed": 4},
        {"step1": 1},
        {"sync": "qsr", "qsr_alpha": 0.3},
        {"lr_schedule": "cosine"},
        {"post_local_from": 1},
        {"warm_up": True},
    ]
    for change in changes:
        other = plain("groupnorm", prepared("groupnorm", **{**MOMENTUM, **change}))
        assert other.metrics[-1]["val_loss"] != pytest.approx(base.metrics[-1]["val_loss"], rel=1e-6), change


def test_the_module_that_is_given_is_not_changed(tmp_path: Path) -> None:
    module: nn.Module = small_models.make("batchnorm")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    config = RunConfig().with_values(**{**RUN, "epochs": 1, "log_pth": str(tmp_path / "run")})
    ready = build_run(config, small_models.images(), lambda: copy.deepcopy(module), cross_entropy, model_flag="model")
    train(ready, overwrite=False, make_loggers=lambda path: [])
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
