"""Triton kernels that fail, are wrong or hang are found before a run, and plain torch takes their place.

Triton's interpreter stands for a GPU here: `kernels.DEVICES` lets "auto" take Triton on a CPU.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton.errors import TritonError

from fastlocal import kernels
from fastlocal.executors.tuning import conv_timing
from fastlocal.kernel_trial import kernels_tried, verdicts
from fastlocal.kernel_trial.kernels_tried import disable_failing_op, try_triton, used_ops
from fastlocal.kernel_trial.processes import Outcome
from fastlocal.kernels.conv2d_clients.geometry import Geometry
from fastlocal.kernels.conv2d_clients.operator import CONVOLUTIONS, choose
from fastlocal.kernels.norm_act.operator import faster_than_torch
from fastlocal.runs import executor_trial
from tests.executors.problems import problem_of
from tests.helpers.command_line import run, train_words
from tests.helpers.stand_ins import stand_in

CPU = torch.device("cpu")
ILLEGAL = "CUDA error: an illegal memory access was encountered"
WRONG = """
from .reference import client_norm as right

def client_norm(rows):
    return right(rows) + 0.3
"""
HANGS = """
import time

def client_sgd(*args, **kwargs):
    time.sleep(60)
"""
RAISES = """
from triton.errors import TritonError

class CompilationError(TritonError):
    __module__ = "triton.compiler.errors"

def client_mean(*args, **kwargs):
    raise CompilationError("at 3:4:\\n    tl.load(x)\\n    ^\\nno such thing")
"""
NO_COMPILER = """
def probe(device):
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")
"""

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton is not interpreted")


def lines_for(text: str) -> list[str]:
    return [line for line in text.splitlines() if "plain torch" in line]


@no_gpu
def test_a_run_goes_on_in_plain_torch_and_remembers(
    capsys: pytest.CaptureFixture[str],
    data: Path,
    tmp_path: Path,
    own_cache_home: Path,
    triton_on_cpus: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels_tried, "SECONDS", 5.0)
    words = [*train_words(data, tmp_path / "one"), "--executor", "stacked", "--tune-seconds", "0"]
    with monkeypatch.context() as patch:
        stand_in(
            tmp_path,
            patch,
            kernels__client_norm__triton_kernel=WRONG,
            kernels__client_sgd__triton_kernel=HANGS,
            kernels__client_mean__triton_kernel=RAISES,
        )
        first = run(capsys, *words)
    monkeypatch.setattr(kernels_tried, "Processes", None)  # whoever tries again fails
    second = run(capsys, *words, "--log-pth", tmp_path / "two")
    for outcome in (first, second):
        assert outcome.status == 0, outcome.err
        patterns = [
            r"client_norm: plain torch \(wrong by 0\.3 on .*; fastlocal verify\)",
            r"client_sgd: plain torch \(hangs on .*: a time limit of 5 s; fastlocal verify\)",
            r"client_mean: plain torch \(fails on .*: no such thing; fastlocal verify\)",
        ]
        said = lines_for(outcome.out + outcome.err)
        assert len(said) == 3 and all(any(re.search(one, line) for line in said) for one in patterns), said
    fault = "wrong by 0.3 on 2x3x16"
    verdicts.store(CPU, "triton", dict.fromkeys(CONVOLUTIONS) | {"conv2d_clients_weight_grad": fault})
    words += ["--model", "cnn"]
    asked = run(capsys, *words, "--conv-strategy", "triton", "--log-pth", tmp_path / "three")
    assert asked.status == 2 and asked.err.count("\n") == 1
    why = f"the backend 'triton' of conv2d_clients_weight_grad cannot run: {fault}; fastlocal verify"
    assert f"--conv-strategy triton: {why}" in asked.err
    assert not (tmp_path / "three").exists()


@no_gpu
def test_without_a_c_compiler_nothing_is_triton(
    capsys: pytest.CaptureFixture[str],
    data: Path,
    tmp_path: Path,
    own_cache_home: Path,
    triton_on_cpus: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    stand_in(tmp_path, monkeypatch, kernel_trial__triton_probe=NO_COMPILER)
    words = [*train_words(data, tmp_path / "run"), "--executor", "stacked", "--tune-seconds", "0"]
    outcome = run(capsys, *words)
    assert outcome.status == 0, outcome.err
    assert len(said := lines_for(outcome.out + outcome.err)) == 1
    why = "there is no C compiler: neither gcc nor clang; fastlocal verify"
    assert said[0].endswith(f"Triton kernels: plain torch ({why})")
    entries = json.loads((own_cache_home / "verified.json").read_text())
    assert all(fault for verdict in entries.values() for fault in verdict.values())
    before = verdicts.key(CPU, "triton")
    monkeypatch.setenv("CC", "/bin/sh")
    assert verdicts.key(CPU, "triton") != before  # once there is a compiler, all are tried again


@pytest.mark.parametrize("broken", ["none", "false"])
def test_without_a_cpp_compiler_threads_take_plain_steps(
    broken: str, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastlocal.executors.scripted import trace

    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'here: error: no space' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(compiler) if broken == "false" else "")
    if broken == "none":
        monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    trace._has_native.cache_clear()
    outcome = run(capsys, *train_words(data, tmp_path / "run"), "--executor", "threaded")
    trace._has_native.cache_clear()
    assert outcome.status == 0, outcome.err
    why = {"none": "there is no C++ compiler: neither $CXX, c++, g++ nor clang++",
           "false": f"{compiler} does not compile it: here: error: no space"}[broken]  # fmt: skip
    (said,) = lines_for(outcome.out + outcome.err)
    assert said.endswith(f"operations in C++: plain torch ({why}; fastlocal verify)")
    assert not list((tmp_path / "cache").rglob("verified.json"))


@no_gpu
def test_one_refusal_governs_all_who_choose(triton_on_cpus: None) -> None:
    x, weight = torch.zeros(2, 8, 4, 9, 9), torch.zeros(2, 5, 4, 3, 3)
    assert (
        choose(x, weight, Geometry()) == "triton" and faster_than_torch(x) and kernels.runs_triton(CPU, *CONVOLUTIONS)
    )
    kernels.refuse("norm_act_backward", "triton", "wrong")
    assert not faster_than_torch(x) and kernels.get("norm_act_backward", device=CPU).__module__.endswith("reference")
    assert kernels.get("norm_act", device=CPU).__module__.endswith("triton_kernel")
    for op in CONVOLUTIONS:
        kernels.refuse(op, "triton", "wrong by 0.3 on 2x3x16")
        assert choose(x, weight, Geometry()) == "grouped"
        assert "triton" not in conv_timing._candidates(CPU, torch.float32)
        with pytest.raises(ValueError, match=f"'triton' of {op} cannot run: wrong by 0.3 on 2x3x16"):
            kernels.get(op, "triton", CPU)
        kernels.accept(op, "triton")
    assert choose(x, weight, Geometry()) == "triton"


def test_without_triton_nothing_is_tried(triton_on_cpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_has_triton", lambda: False)
    monkeypatch.setattr(kernels_tried, "Processes", None)
    assert try_triton(CPU, kernels.TRITON_OPS) == {}


def raised_by(op: str, error: Exception) -> Exception:
    """The error as a Triton kernel of the op raises it."""
    file = Path(kernels.__file__).parent / op / "triton_kernel.py"
    scope: dict[str, Any] = {"error": error}
    exec(compile("def launch():\n    raise error", str(file), "exec"), scope)
    try:
        scope["launch"]()
    except Exception as caught:
        return caught
    raise AssertionError


@no_gpu
def test_a_kernel_that_fails_in_a_step_is_done_without(
    own_cache_home: Path, triton_on_cpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = raised_by("client_sgd", TritonError("out of resource: shared memory"))
    assert isinstance(error, kernels.failures()) and kernels.failing_op(error) == "client_sgd"
    tries = []

    def failing(config: Any, problem: Any) -> Any:
        tries.append(kernels.runs_triton(CPU, "client_sgd"))
        if len(tries) == 1:
            raise error
        return "executor", config, ["timed"]

    monkeypatch.setattr(executor_trial, "_try_executor", failing)
    problem: Any = problem_of("perceptron")
    executor, _, notes = executor_trial.try_executor(SimpleNamespace(), problem)  # type: ignore[arg-type]
    fault = "fails in a step: out of resource: shared memory"
    assert (executor, notes) == ("executor", [f"client_sgd: plain torch ({fault}; fastlocal verify)", "timed"])
    assert tries == [True, False] and verdicts.known(CPU, "triton") == {"client_sgd": fault}
    with pytest.raises(TritonError):  # once more, though nobody uses it: for whoever mends it
        tries.clear()
        executor_trial.try_executor(SimpleNamespace(), problem)  # type: ignore[arg-type]


def test_what_says_nothing_about_a_kernel_is_not_its_fault(own_cache_home: Path) -> None:
    assert disable_failing_op(RuntimeError("not ours"), CPU) is None
    assert disable_failing_op(raised_by("client_sgd", torch.OutOfMemoryError("CUDA out of memory")), CPU) is None
    assert disable_failing_op(raised_by("client_sgd", RuntimeError(ILLEGAL)), CPU) is None
    assert kernels.refusals() == {}


def test_the_ops_that_a_module_uses() -> None:
    plain = used_ops(torch.nn.Linear(2, 2))
    adamw = used_ops(torch.nn.Linear(2, 2), adamw=True)
    assert "client_adamw" in adamw and {*adamw} ^ {*plain} == {"client_adamw", "client_sgd"}
    assert "client_sgd" in plain and not {*CONVOLUTIONS, "norm_act"} & {*plain}
    both = used_ops(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.GroupNorm(2, 4)))
    assert {*both} == {*plain, *CONVOLUTIONS, "norm_act", "norm_act_backward"}


@no_gpu
def test_a_trial_that_takes_too_long_leaves_the_rest_as_it_is(
    own_cache_home: Path, triton_on_cpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other ranks wait for a rank that tries its kernels, and give it up after their timeout."""

    class Slow:
        def __enter__(self) -> Any:
            return SimpleNamespace(check=lambda job: (Outcome(op, None, 1, 0.1) for op in job.ops))

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(kernels_tried, "Processes", Slow)
    monkeypatch.setattr(kernels_tried, "MAX_SECONDS", 0.0)
    assert try_triton(CPU, ["client_sgd", "client_mean"]) == {}
    assert "client_mean" not in verdicts.known(CPU, "triton")
