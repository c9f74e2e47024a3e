"""`fastlocal verify` on a device that is not there: every line that a GPU alone would walk, but for the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fastlocal
from fastlocal import kernels
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.kernel_trial.jobs import TRITON, Job
from fastlocal.kernel_trial.processes import Outcome
from fastlocal.verification import modules, operations
from tests.helpers import small_models
from tests.rehearsal.conftest import Rehearsal

WRONG = "wrong by 0.3 on 2x3x16"


class Answers:
    """In place of other processes, which would not find the device."""

    faults: dict[str, str] = {}
    noted: dict[str, int] = {}

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *error: object) -> None: ...

    def check(self, job: Job) -> Iterator[Outcome]:
        assert (job.backend, job.device.partition(":")[0]) == ("triton", "cuda")
        if job.calls and not self.noted:
            self.noted.update({op: len(calls) for op, calls in torch.load(job.calls, weights_only=False).items()})
        for op in job.ops:
            yield Outcome(op, self.faults.get(op), 3, 0.1)


@pytest.fixture
def answers(own_cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Answers]]:
    monkeypatch.setattr(operations, "Processes", Answers)
    monkeypatch.setattr("fastlocal.kernel_trial.kernels_tried.Processes", Answers)
    # autograd adds to gradients that are tensors of a subclass, as those here, out of place: not into looped rows
    monkeypatch.setattr(modules, "LoopedExecutor", StackedExecutor)
    Answers.faults, Answers.noted = {}, {}
    yield Answers
    for op, backend in list(kernels.refusals()):
        kernels.accept(op, backend)


def verified(rehearsed: Rehearsal, **settings: Any) -> dict[str, Any]:
    data = small_models.images().train
    module = small_models.make("groupnorm").float()
    given: dict[str, Any] = {"batch_size": 5, "momentum": 0.9, "clip_norm": 1.0, "device": "cuda", "progress": False}
    pair = data.inputs, data.targets
    with rehearsed(tries_kernels=True):
        found = fastlocal.verify(module, pair, mean=(0.5,) * 3, std=(0.2,) * 3, aug=True, **given, **settings)
    return {check.name: check for check in found.checks}


def test_every_check_of_a_gpu(answers: type[Answers], rehearsed: Rehearsal) -> None:
    found = verified(rehearsed)
    assert not [check for check in found.values() if check.fault]
    assert {f"{op} Triton" for op in kernels.TRITON_OPS} < found.keys()
    ways = ("stacked, looped", "chunks of 2 + 1, looped", "CUDA graph, looped")
    assert {"a one-line kernel", "Triton's compilers", *(f"{way} fp32" for way in ways)} < found.keys()
    others = {"client_adamw", "client_sgd_mean", "server_step"}  # of other optimizers, and after local steps
    used = set(kernels.TRITON_OPS) - others
    assert answers.noted.keys() >= used, "a step on a GPU calls every kernel"


def test_a_wrong_kernel_is_not_in_the_steps(answers: type[Answers], rehearsed: Rehearsal) -> None:
    answers.faults = {"norm_act": WRONG}
    found = verified(rehearsed)
    assert {check.name: check.fault for check in found.values() if check.fault} == {"norm_act Triton": WRONG}
    assert list(kernels.refusals()) == [("norm_act", "triton")]


def test_without_triton_nothing_of_it_is_trusted(answers: type[Answers], rehearsed: Rehearsal) -> None:
    answers.faults = {TRITON: "fails on a kernel of one line: no such thing"}
    found = verified(rehearsed)
    assert {check.name for check in found.values() if check.fault} == {"a one-line kernel"}
    assert {op for op, _ in kernels.refusals()} == {*kernels.TRITON_OPS}
