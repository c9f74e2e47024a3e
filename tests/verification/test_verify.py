"""`fastlocal verify` proves what a run trusts, says what does not hold, and later runs do without it."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastlocal
from fastlocal import kernels
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.kernel_trial import jobs, processes
from fastlocal.kernel_trial import kernels_tried as tried
from fastlocal.kernel_trial.calls import Calls, load_cases
from fastlocal.kernels.case import cases
from fastlocal.kernels.conv2d_clients.geometry import Geometry
from fastlocal.verification import operations, proof
from tests.helpers import small_models
from tests.helpers.command_line import Outcome, run, train_words
from tests.helpers.stand_ins import stand_in

CPU_WRONG = """
from .reference import client_mean as right

def client_mean(params, total, weight, *, broadcast=False):
    right(params, total, weight, broadcast=broadcast)
    total[:1] += 0.3
"""
CPU_RAISES = """
def gather_augment(*args, **kwargs):
    raise RuntimeError("no such instruction")
"""
CPP_OTHERS = """
import importlib.util, os, time
from . import FOLDER

spec = importlib.util.spec_from_file_location(__name__ + "_right", FOLDER / "in_torch.py")
right = importlib.util.module_from_spec(spec)
spec.loader.exec_module(right)

def __getattr__(name):
    return getattr(right, name)

def product(x, weight, bias, y):
    {product}

def sgd_update(*given, **more):
    os.abort()
"""


@pytest.fixture(autouse=True)
def nothing_refused() -> Iterator[None]:
    yield
    for op, backend in list(kernels.refusals()):
        kernels.accept(op, backend)


def verify(capsys: pytest.CaptureFixture[str], data: Path, *words: object) -> Outcome:
    model = ("--dataset", "npz", "--data-pth", data, "--device", "cpu", "--batch-size", 8, "--total-batch-size", 16)
    return run(capsys, "verify", *model, *words)


def test_this_machine(capsys: pytest.CaptureFixture[str], data: Path, own_cache_home: Path) -> None:
    outcome = verify(capsys, data, "--ops", "client_mean,product")
    assert (outcome.status, outcome.err) == (0, "")
    *lines, last = outcome.out.splitlines()
    assert last == f"All {len(lines)} checks hold."
    names = [line[12:40].strip() for line in lines]
    assert names == ["versions", "device", "operations in C++", "client_mean for CPUs", "product C++"] + [
        "stacked, looped fp64", "stacked, looped fp32", "chunks of 2 + 1, looped fp32", "threaded, looped fp32"
    ]  # fmt: skip
    assert torch.__version__ in lines[0] and all(" ok " in line for line in lines)
    # each of the small cases, and what this run calls
    assert int(re.search(r"ok +(\d+) cases", lines[3])[1]) > len(  # type: ignore[index]
        [case for case in cases("client_mean") if not case.large]
    )
    kept = json.loads((own_cache_home / "verified.json").read_text()).values()
    assert {op: fault for found in kept for op, fault in found.items()} == {"client_mean": None, "product": None}


def test_what_does_not_hold_is_said_and_done_without(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, own_cache_home: Path, monkeypatch: Any
) -> None:
    with monkeypatch.context() as patch:
        stand_in(
            tmp_path,
            patch,
            kernels__client_mean__cpu=CPU_WRONG,
            kernels__gather_augment__cpu=CPU_RAISES,
            kernels__native__in_torch=CPP_OTHERS.format(product="time.sleep(60)"),
        )
        words = ("--ops", "client_mean,gather_augment,product,sgd_update,client_sum", "--seconds", 4)
        outcome = verify(capsys, data, *words)
    assert outcome.status == 1
    for name, says in {
        "client_mean for CPUs": r"wrong by 0\.3 on mean 3x1 float32",
        "gather_augment for CPUs": r"fails on .*: no such instruction",
        "product C\\+\\+": r"hangs on 8x3 to 2: a time limit of 4 s",
        "sgd_update C\\+\\+": r"crashes on 3: SIGABRT",
    }.items():
        assert re.search(rf"^kernel +{name} +WRONG +{says}$", outcome.out, re.MULTILINE), outcome.out
    assert "stacked, looped fp64         ok" in outcome.out  # a process that crashed took nothing with it
    assert "4 of 12 checks do not hold: client_mean for CPUs, gather_augment for CPUs, product C++" in outcome.out
    kept = {op for found in json.loads((own_cache_home / "verified.json").read_text()).values() for op in found}
    assert {"client_mean", "sgd_update"} <= kept and "product" not in kept, "later than a short limit is no verdict"
    assert kernels.get("client_mean", device="cpu").__module__.endswith("client_mean.reference")
    with pytest.raises(ValueError, match=r"'cpu' of client_mean cannot run: wrong by 0\.3 on mean 3x1 float32"):
        kernels.get("client_mean", "cpu", "cpu")
    kernels.accept("client_mean", "cpu")  # as in a process that begins
    again = run(capsys, *train_words(data, tmp_path / "run"), "--executor", "looped")
    assert again.status == 0 and "client_mean: plain torch (wrong by 0.3 on mean 3x1 float32; fastlocal verify)" in (
        again.out + again.err
    )


def test_an_unknown_operation_and_a_bad_limit(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    for words, says in (
        (("--ops", "client_men"), "--ops client_men: is no op of this device; did you mean 'client_mean'?"),
        (("--seconds", "0"), "--seconds 0: give a number above 0"),
        (("--ops",), "--ops: needs a value"),
        (("--sekonds", "3"), "unknown flag --sekonds"),
    ):
        outcome = verify(capsys, data, *words)
        assert outcome.status == 2 and says in outcome.err and outcome.err.count("\n") == 1


def test_from_python(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data = small_models.images().train
    pair = data.inputs.float() / 255, data.targets
    module = small_models.make("perceptron").float()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = fastlocal.verify(module, pair, batch_size=5, momentum=0.9, device="cpu", ops=[])
    assert found.passed and str(found) == capsys.readouterr().out.strip()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())

    right = StackedExecutor._step

    def wrong(self: Any, stack: Any, *given: Any) -> Any:
        result = right(self, stack, *given)
        stack.params[:1] += 1e-2
        return result

    monkeypatch.setattr(StackedExecutor, "_step", wrong)
    found = fastlocal.verify(module, pair, batch_size=5, device="cpu", ops=[], progress=False)
    assert not found.passed and capsys.readouterr().out == ""
    faults = {check.name: check.fault for check in found.checks if check.fault}
    assert faults.keys() == {"stacked, looped fp64", "stacked, looped fp32", "chunks of 2 + 1, looped fp32"}
    assert re.fullmatch(r"distance [\d.e+-]+, allowed 1e-07", str(faults["stacked, looped fp64"]))


def test_modules_that_cannot_be_stacked_or_compared() -> None:
    data = small_models.images().train
    pair = data.inputs.float() / 255, data.targets

    class OnTheHost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3 * 6 * 5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.flatten(1)) * (1.0 if float(x.sum()) > 0 else 2.0)

    settings: dict[str, Any] = {"batch_size": 5, "device": "cpu", "ops": [], "progress": False}
    found = fastlocal.verify(OnTheHost(), pair, **settings)
    said = {check.name: check.detail for check in found.checks}
    assert found.passed and said["stacked"].startswith("not used: vmap does not take the model")

    class Shaking(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.flatten(1) * (1 + 0.1 * random.random()))

    found = fastlocal.verify(Shaking(3 * 6 * 5, 4), pair, **settings)
    assert found.passed and found.checks[-1].detail == "not compared: the model draws random numbers itself"


def test_a_device_that_fails_ends_the_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*given: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(StackedExecutor, "run_round", failing)
    data = small_models.images().train
    pair = data.inputs.float() / 255, data.targets
    monkeypatch.setattr(proof, "_take_step", lambda trained: None)
    found = fastlocal.verify(small_models.make("perceptron"), pair, device="cpu", ops=[], progress=False)
    assert not found.passed and "the device failed: CUDA error" in str(found.checks[-1].fault)


def test_training_says_once_what_it_does_without(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, own_cache_home: Path, monkeypatch: Any
) -> None:
    """A function in C++ that is wrong: tried by the first run, remembered by the second."""
    words = [*train_words(data, tmp_path / "one"), "--executor", "threaded", "--momentum", "0.9"]
    tried._native_verdicts.cache_clear()
    with monkeypatch.context() as patch:
        stand_in(tmp_path, patch, kernels__native__in_torch=CPP_OTHERS.format(product="y.zero_()"))
        first = run(capsys, *words)
    tried._native_verdicts.cache_clear()
    monkeypatch.setattr(tried, "Processes", None)
    second = run(capsys, *words, "--log-pth", tmp_path / "two")
    for outcome in (first, second):
        assert outcome.status == 0, outcome.err
        said = outcome.out + outcome.err
        pattern = r"product: plain torch \(wrong by [\d.]+ on 8x3 to 2; fastlocal verify\)"
        assert len(re.findall(pattern, said)) == 1, said
        assert "sgd_update: plain torch (crashes on 3: SIGABRT; fastlocal verify)" in said
    tried._native_verdicts.cache_clear()


def test_the_calls_of_a_run_are_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their memory layouts: a kernel that is wrong on one of them alone is found."""
    calls, path = Calls(), tmp_path / "calls.pt"
    rows, wide = torch.randn(2, 80)[:, :70], torch.randn(3, 50_001)[:, 1:]
    with calls.record():
        add = kernels.get("client_mean", device="cpu")
        for params in (rows, wide, wide):
            add(params, torch.zeros(params.shape[1], dtype=torch.float64), 0.5)
        images = torch.randn(2, 3, 6, 6, 4).movedim(-1, 2).expand(2, 3, 4, 6, 6)
        convolve = kernels.load("conv2d_clients", "triton")
        convolve(images, torch.randn(2, 5, 4, 3, 3), None, geometry=Geometry(), tf32=False)
        step, options = kernels.get("client_sgd", device="cpu"), {"mu": 0.0, "weight_decay": 0.0, "nesterov": False}
        step(rows + 0, None, rows.clone(), torch.ones(()).expand(2), torch.ones(70), **options)
    calls.save(path)
    (small, _), (large, _) = load_cases(path, "client_mean")
    given = small.make_inputs(torch.device("cpu"))
    assert torch.equal(given["params"], rows) and given["params"].stride() == (80, 1) and given["weight"] == 0.5
    drawn = large.make_inputs(torch.device("cpu"))["params"]
    assert (drawn.shape, drawn.stride()) == ((3, 50_000), (50_001, 1)) and drawn.std() > 0.9
    ((convolution, own),) = load_cases(path, "conv2d_clients")
    assert own == {"tf32": False} and convolution.tolerance == "fp32 sum"
    assert convolution.make_inputs(torch.device("cpu"))["x"].stride() == images.stride()
    ((update, _),) = load_cases(path, "client_sgd")
    assert update.make_inputs(torch.device("cpu"))["learning_rate"].stride() == (0,)

    load = kernels.load

    def wrong(op: str, backend: str) -> Any:
        right = load(op, backend)

        def add(params: torch.Tensor, total: torch.Tensor, weight: float, broadcast: bool = False) -> None:
            right(params, total, weight, broadcast=broadcast)
            if params.shape[1] == 50_000:
                total[-1] += 300.0

        return add if backend == "cpu" else right

    monkeypatch.setattr(kernels, "load", wrong)
    said: list[dict[str, Any]] = []
    jobs.run(jobs.Job(("client_mean",), "cpu", "cpu", calls=str(path)), said.append)
    assert said[-1] == {"op": "client_mean", "fault": "wrong by 3e+02 on this run's 3x50000", "checked": 3}


def test_ops_are_checked_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three at a time, in processes of their own, and what comes of them in order; Ctrl-C stops them all."""
    together, made = threading.Barrier(3, timeout=30), []

    class Fake:
        def __init__(self) -> None:
            self.stopped = threading.Event()
            made.append(self)

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *error: object) -> None: ...

        def stop(self) -> None:
            self.stopped.set()

        def check(self, job: jobs.Job) -> Iterator[processes.Outcome]:
            if job.ops == ("interrupted",):
                raise KeyboardInterrupt
            if job.backend == "cpu":
                together.wait()
            elif not self.stopped.wait(30):
                raise AssertionError("nobody stopped it")
            yield processes.Outcome(job.ops[0], None, 1, 0.0)

    monkeypatch.setattr(operations, "Processes", Fake)
    names = tuple("abcdef")
    first: Any = Fake()
    assert [one.op for one in operations._check_each(first, jobs.Job(names, "cpu", "cpu"), 3)] == list(names)
    assert len(made) == 3
    with pytest.raises(KeyboardInterrupt):
        list(operations._check_each(first, jobs.Job(("interrupted", "b", "c"), "triton", "cpu"), 3))
    assert all(one.stopped.is_set() for one in made[-2:])
