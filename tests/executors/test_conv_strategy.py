"""Every stacked convolution takes the way that it was told to, and all ways lead to the same place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastlocal.common.errors import UsageError
from fastlocal.config.serialization import read_config
from fastlocal.executors.stacked import StackedExecutor
from fastlocal.executors.tuning.conv_strategy import Strategies, format_strategies, parse_strategies
from fastlocal.executors.tuning.conv_timing import conv_choices
from tests.executors.problems import CPU, assert_same, problem_of, run, start
from tests.helpers import command_line

WAYS = ["grouped", "loop", "im2col", {"conv1": "im2col", "conv2": "loop"}, {"conv2": "grouped"}]


class Calls(TorchDispatchMode):
    """Notes how the stacked convolution is called."""

    def __init__(self) -> None:
        super().__init__()
        self.strategies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.ops.fastlocal.conv2d_clients.default:
            self.strategies.append(args[-1])
        elif func is torch.ops.aten.convolution.default:
            self.strategies.append("grouped")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["batchnorm", "groupnorm"])
@pytest.mark.parametrize("strategy", WAYS, ids=str)
def test_all_strategies_take_the_looped_steps(strategy: Strategies, name: str) -> None:
    problem = problem_of(name)
    stack, plan = start(problem)
    result = StackedExecutor(problem, conv_strategy=strategy).run_round(stack, plan)
    assert_same((stack, result), run("looped", problem), 1e-11)


def test_layers_take_the_strategies_that_they_are_given() -> None:
    problem = problem_of("groupnorm")
    for strategy, expected in (
        ("loop", ["loop", "loop"]),
        ({"conv1": "im2col", "conv2": "loop"}, ["im2col", "loop"]),
        ({"conv1": "grouped", "conv2": "im2col"}, ["grouped", "im2col"]),
    ):
        with Calls() as calls:
            StackedExecutor(problem, conv_strategy=strategy).run_round(*start(problem))
        assert calls.strategies == expected * 4  # three steps, and the replay that is compared with the third


class Functional(nn.Module):
    """A convolution without a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding="same").mean(dim=(2, 3))


def test_one_strategy_for_all_reaches_convolutions_that_are_no_layers() -> None:
    problem = problem_of("groupnorm", module=Functional().double())
    with Calls() as calls:
        StackedExecutor(problem, conv_strategy="loop").run_round(*start(problem))
    assert calls.strategies == ["loop"] * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", "auto"),
        ("im2col", "im2col"),
        ("conv1=loop", {"conv1": "loop", "conv2": "auto"}),
        ("loop,conv2=im2col", {"conv1": "loop", "conv2": "im2col"}),
        (" conv2=im2col , conv1=grouped", {"conv1": "grouped", "conv2": "im2col"}),
    ],
)
def test_the_flag_is_read_and_written(text: str, expected: Strategies) -> None:
    module = problem_of("groupnorm").module
    read = parse_strategies(text, module, CPU)
    assert read == expected
    assert parse_strategies(format_strategies(read), module, CPU) == read


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lop", "unknown strategy 'lop'; did you mean 'loop'?"),
        ("conv1=fft", "unknown strategy 'fft'; one of auto, grouped, loop, im2col, triton"),
        ("conv3=loop", "no convolution 'conv3'; did you mean 'conv2'?"),
        ("linear=loop", "no convolution 'linear'; the first is 'conv1'"),
        ("conv1=triton", "cannot run: no CUDA device"),
    ],
)
def test_mistakes_are_one_line(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if "triton" in text and torch.cuda.is_available():
        said = "the tensors are on cpu"
    with pytest.raises(UsageError, match="--conv-strategy") as caught:
        parse_strategies(text, problem_of("groupnorm").module, CPU)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def own_cache(own_cache_home: Path) -> Path:
    return own_cache_home / "convolutions.json"


def test_strategies_are_timed_once_per_layer_shape_and_machine(own_cache: Path) -> None:
    problem = problem_of("groupnorm", torch.float32)
    choices = conv_choices(problem, batch=5, clients=4)
    assert list(choices.by_layer) == ["conv1", "conv2"]
    for timing in choices.timings:
        assert set(timing.milliseconds) == {"grouped", "loop", "im2col"} and timing.clients == 4
        assert timing.milliseconds[timing.chosen] == min(timing.milliseconds.values())
    assert [timing.shape.x for timing in choices.timings] == [(5, 3, 6, 5), (5, 4, 6, 5)]
    assert [timing.shape.leads for timing in choices.timings] == [True, False]
    assert conv_choices(problem, batch=5, clients=4) == choices  # to the last digit of every time
    assert len(choices.table().splitlines()) == 2
    assert len(json.loads(own_cache.read_text())) == 2
    own_cache.write_text(json.dumps(dict.fromkeys(json.loads(own_cache.read_text()), {"fft": 1.0})))
    assert {way for timing in conv_choices(problem, batch=5, clients=4).timings for way in timing.milliseconds} == {
        *("grouped", "loop", "im2col")
    }


def test_what_is_settled_is_not_timed() -> None:
    problem = problem_of("groupnorm", torch.float32)
    choices = conv_choices(problem, batch=5, clients=4, requested={"conv1": "im2col", "conv2": "auto"})
    assert choices.by_layer["conv1"] == "im2col" and [timing.layers for timing in choices.timings] == [("conv2",)]
    assert conv_choices(problem, batch=5, clients=4, requested="loop").timings == ()
    late = conv_choices(problem, batch=3, clients=4, seconds=0.0)
    assert late.by_layer == {"conv1": "grouped", "conv2": "grouped"} and "not timed" in late.table()
    larger = conv_choices(problem, batch=4000, clients=4, seconds=0.0)
    assert larger.by_layer == {"conv1": "loop", "conv2": "loop"}, "as `auto` would do, layer by layer"


def test_a_run_writes_its_choice_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = command_line.write_npz(tmp_path / "data.npz")
    flags = ["--model", "cnn", "--executor", "stacked"]
    assert command_line.run(capsys, *command_line.train_words(data, tmp_path / "run"), *flags).status == 0
    machine = read_config(tmp_path / "run" / "config.json").machine
    assert "auto" not in machine.conv_strategy
    words = ["train", "--config", tmp_path / "run" / "config.json", "--log-pth", tmp_path / "again"]
    again = command_line.run(capsys, *words)
    assert again.status == 0
    assert read_config(tmp_path / "again" / "config.json").machine == machine
    assert "not timed" not in again.out + again.err
    rule = command_line.run(capsys, *command_line.train_words(data, tmp_path / "rule"), *flags, "--tune-seconds", "0")
    assert rule.status == 0 and "not timed" in rule.out + rule.err
    assert "auto" not in read_config(tmp_path / "rule" / "config.json").machine.conv_strategy


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--executor stacked --conv-strategy conv9=loop", "'conv9'"),
        ("--executor looped --conv-strategy loop", "--conv-strategy loop: is for --executor stacked"),
        ("--executor threaded --conv-strategy conv1=loop", "--conv-strategy conv1=loop: is for --executor stacked"),
    ],
)
def test_a_strategy_that_cannot_be_had(
    flags: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = command_line.write_npz(tmp_path / "data.npz")
    words = [*command_line.train_words(data, tmp_path / "run"), "--model", "cnn", *flags.split()]
    outcome = command_line.run(capsys, *words)
    assert outcome.status == 2 and len(outcome.err.splitlines()) == 1 and said in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_strategy_asks_for_the_executor_that_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By rule a CPU loops over the clients of a convolutional model; another executor starts without the strategy."""
    data, run = command_line.write_npz(tmp_path / "data.npz"), tmp_path / "run"
    words = [*command_line.train_words(data, run), "--model", "cnn", "--conv-strategy", "im2col"]
    assert command_line.run(capsys, *words).status == 0
    machine = read_config(run / "config.json").machine
    assert (machine.executor, machine.conv_strategy) == ("stacked", "im2col")
    again = ["train", "--config", run / "config.json", "--executor", "looped", "--log-pth", tmp_path / "again"]
    assert command_line.run(capsys, *again).status == 0
    assert read_config(tmp_path / "again" / "config.json").machine.executor == "looped"
