"""--executor auto: what is timed, what is remembered, and what is left alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastlocal import remembered
from fastlocal.choosing import candidates
from fastlocal.commands.flags import parse
from fastlocal.executors.base import RoundPlan, RoundResult
from fastlocal.executors.threaded import ThreadedExecutor
from fastlocal.executors.tuning import Work, tune
from fastlocal.named import prepare_named
from fastlocal.prepared import Prepared
from fastlocal.probe import Probe
from fastlocal.remembered import cache_file, keep, recall
from fastlocal.stack import ClientStack
from tests.executors.test_executors import EXECUTORS, problem_of
from tests.tiny import run, train_words

LONG = ("--epochs", "10000000", "--tune-seconds", "0.2")


@pytest.fixture(autouse=True)
def own_cache(own_cache_home: Path) -> Path:
    return own_cache_home / "tuning.json"


def prepared(data: Path, *flags: str) -> Prepared:
    return prepare_named(parse([*train_words(data, "unused")[1:], *flags]).run, lambda text: None)


def test_a_long_run_takes_what_it_timed_and_remembers_it(data: Path, own_cache: Path) -> None:
    first = prepared(data, *LONG)
    assert first.config.machine.executor in EXECUTORS
    lines = [line for line in first.notes if line.endswith(" ms")]
    assert {line.split()[1] for line in lines} >= {"stacked", "threaded"}
    times = [float(line.split()[-2]) for line in lines]
    assert times == sorted(times) and times[0] > 0
    assert lines[0].startswith(f"--executor {first.config.machine.executor}")

    again = prepared(data, *LONG)
    assert again.config.machine == first.config.machine
    (note,) = again.notes
    assert "the fastest when it was timed" in note and str(own_cache) in note

    other = prepared(data, *LONG, "--batch-size", "4")
    assert len(other.notes) > 1 and len(json.loads(own_cache.read_text())) == 2

    (value, _) = json.loads(own_cache.read_text()).values()
    assert value["fastest"]["executor"] == first.config.machine.executor
    short = prepared(data)
    assert short.config.machine.executor == "stacked" and short.notes == ()


def test_other_code_is_timed_afresh(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "code" / "deeper" / "step.py"
    source.parent.mkdir(parents=True)
    source.write_text("slow")
    monkeypatch.setattr(remembered, "SOURCES", (*remembered.SOURCES, tmp_path / "code"))
    prepared(data, *LONG)
    assert len(prepared(data, *LONG).notes) == 1
    source.write_text("fast")
    assert len(prepared(data, *LONG).notes) > 1


@pytest.mark.parametrize("flags", [(), ("--epochs", "10000000", "--tune-seconds", "0")])
def test_short_runs_and_those_that_shall_not_go_by_rule(flags: tuple[str, ...], data: Path, own_cache: Path) -> None:
    for model, executor in (("mlp", "stacked"), ("cnn", "looped")):
        found = prepared(data, "--model", model, *flags)
        assert found.config.machine.executor == executor and "timed" not in str(found.notes)
    assert not own_cache.exists()


def test_what_was_chosen_is_never_timed_again(data: Path, own_cache: Path) -> None:
    found = prepared(data, *LONG, "--executor", "looped")
    assert found.config.machine.executor == "looped" and found.notes == ()
    with_config = parse(["--config", str(_written(found, data.parent / "config.json"))]).run
    again = prepare_named(with_config, lambda text: None)
    assert again.config.machine == found.config.machine and again.notes == () and not own_cache.exists()


def _written(found: Prepared, path: Path) -> Path:
    path.write_text(found.config.to_json())
    return path


def test_what_the_user_gave_is_kept(data: Path) -> None:
    found = prepared(data, *LONG, "--model", "cnn", "--chunk", "1", "--workers", "2", "--channels-last")
    machine = found.config.machine
    assert (machine.chunk, machine.workers) == (1, 2)
    timed = [line for line in found.notes if "--executor threaded" in line]
    assert len(timed) == 1 and "--channels-last 1" in timed[0]


def test_a_conv_strategy_leaves_only_what_has_one(data: Path) -> None:
    found = prepared(data, *LONG, "--model", "cnn", "--conv-strategy", "im2col")
    machine = found.config.machine
    assert (machine.executor, machine.conv_strategy) == ("stacked", "im2col")
    assert not any("--executor" in note for note in found.notes)


def test_what_was_timed_with_other_flags_is_not_taken(data: Path, own_cache: Path) -> None:
    for more in (("--channels-last", "1"), ("--channels-last", "0"), ("--chunk", "1")):
        assert len(prepared(data, *LONG, "--model", "cnn", *more).notes) > 1
    assert len(json.loads(own_cache.read_text())) == 3


def test_steps_that_a_gpu_replays_are_not_held_against_a_loop(data: Path) -> None:
    found = prepared(data)
    numerics = dataclasses.replace(found.problem.numerics, device=torch.device("cuda"))
    problem, seen = dataclasses.replace(found.problem, numerics=numerics), Probe(3, False, (), None)
    machine = dataclasses.replace(found.config.machine, executor="auto", cuda_graph=None)
    assert candidates(found.config, machine, problem, seen) == [{"executor": "stacked"}]
    launched = dataclasses.replace(machine, cuda_graph=False)
    assert candidates(found.config, launched, problem, seen) == [{"executor": "stacked"}, {"executor": "looped"}]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 1}', "\x00\xff"])
def test_a_file_that_is_none(text: str, data: Path, own_cache: Path) -> None:
    own_cache.write_text(text)
    assert len(prepared(data, *LONG).notes) > 1
    assert len(json.loads(own_cache.read_text())) in (1, 2)


def test_entries_of_another_kind(data: Path, own_cache: Path) -> None:
    prepared(data, *LONG)
    (key,) = json.loads(own_cache.read_text())
    for value in (None, 3, "threaded", {"fastest": {"executor": "fast"}, "by_rule": 1.0}, {"fastest": {}}):
        own_cache.write_text(json.dumps({key: value}))
        assert prepared(data, *LONG).config.machine.executor in EXECUTORS


def test_a_cache_that_cannot_be_written(data: Path, own_cache: Path) -> None:
    shutil.rmtree(own_cache.parent)
    own_cache.parent.write_text("a file where a folder should be")
    assert prepared(data, *LONG).config.machine.executor in EXECUTORS


def test_writers_at_once_leave_a_whole_file(own_cache: Path) -> None:
    assert own_cache == cache_file("tuning.json")
    failed: list[Any] = []

    def write(name: str) -> None:
        for number in range(30):
            keep(own_cache, f"{name}{number}", [number] * 100)
            try:
                json.loads(own_cache.read_text())
            except ValueError as error:
                failed.append(error)

    writers = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed and {path.name for path in own_cache.parent.iterdir()} == {"tuning.json", "native"}
    assert len(json.loads(own_cache.read_text())) == 120, "no writer loses another's entry"
    keep(own_cache, "last", 7)
    assert recall(own_cache, "last") == 7


def test_random_states_and_the_model_are_left_alone() -> None:
    problem = problem_of("batchnorm", torch.float32)
    before, state = problem.module.state_dict(), torch.get_rng_state()
    before = {name: value.clone() for name, value in before.items()}
    options = [{"executor": name} for name in ("looped", "threaded")]
    timings = tune(problem, Work(3, 5, 2, 10**9), options, lambda p, v: EXECUTORS[v["executor"]](p), 0.1)
    assert {timing.values["executor"] for timing in timings} == {"looped", "threaded"}
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in problem.module.state_dict().items())


def test_a_candidate_that_fails_is_left_out() -> None:
    def make(problem: Any, values: Any) -> Any:
        if values["executor"] == "bad":
            raise RuntimeError("out of memory")
        return ThreadedExecutor(problem, workers=1)

    problem, work = problem_of("perceptron", torch.float32), Work(3, 5, 2, 10**9)
    timings = tune(problem, work, [{"executor": "good"}, {"executor": "bad"}], make, 0.1)
    assert [timing.values["executor"] for timing in timings] == ["good"]
    assert tune(problem, work, [{"executor": "bad"}, {"executor": "good"}], make, 0.1) == []


def test_compiled_steps_are_timed_in_whole_chunks() -> None:
    stepped: list[tuple[bool, int]] = []

    def make(problem: Any, values: Any) -> Any:
        executor = ThreadedExecutor(problem, workers=1)
        train = executor.run_round
        executor.run_round = lambda stack, plan: (  # type: ignore[method-assign]
            stepped.append((bool(values.get("compile")), len(stack.params))) or train(stack, plan)
        )
        return executor

    work = Work(7, 5, 2, 10**9)
    tune(problem_of("perceptron", torch.float32), work, [{"compile": False}, {"compile": True}], make, 0.1)
    assert {clients for compiled, clients in stepped if compiled} == {7}
    assert min(clients for compiled, clients in stepped if not compiled) < 7


class Clock:
    """The time as executors under a test let it pass, whatever else the machine does."""

    def __init__(self) -> None:
        self.passed, self.computed = 0.0, 0.0

    def wait(self, seconds: float) -> None:
        self.passed += seconds

    def compute(self, seconds: float) -> None:
        self.passed, self.computed = self.passed + seconds, self.computed + seconds

    def perf_counter(self) -> float:
        return self.passed

    def process_time(self) -> float:
        return self.computed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("fastlocal.executors.tuning.time", clock)
    return clock


class Paced:
    """Takes a round as long as `pace` says, given its samples, and trains nothing."""

    def __init__(self, pace: Callable[[int], None]) -> None:
        self.pace, self.batches = pace, set[int]()

    def run_round(self, stack: ClientStack, plan: RoundPlan) -> RoundResult:
        self.batches.add(plan.sample_ids.shape[-1])
        self.pace(plan.sample_ids.numel())
        return RoundResult(torch.zeros(plan.sample_ids.shape[:2]), None)


def order_of(paces: dict[str, Callable[[int], None]], work: Work, seconds: float) -> list[tuple[str, float]]:
    """The names of executors of these paces and their seconds per client-step, as tuned."""
    made = {name: Paced(pace) for name, pace in paces.items()}
    options = [{"executor": name} for name in paces]
    timings = tune(problem_of("perceptron"), work, options, lambda p, v: made[v["executor"]], seconds)
    return [(timing.values["executor"], timing.seconds) for timing in timings]


def test_one_lucky_round_decides_nothing(clock: Clock) -> None:
    lucky = iter([4e-3] * 3)
    paces = {
        "rule": lambda samples: clock.compute(3e-2 * samples),
        "steady": lambda samples: clock.compute(1e-2 * samples),
        "lucky": lambda samples: clock.compute(next(lucky, None) or 2e-2 * samples),
    }
    (name, seconds), *_ = order_of(paces, Work(1, 1, 1, 10**12), 0.5)
    assert name == "steady" and seconds == pytest.approx(1e-2)


def test_one_round_that_was_held_up_rules_nothing_out(clock: Clock) -> None:
    held_up = iter([1e-3, 0.1])
    paces = {
        "rule": lambda samples: clock.compute(2e-2 * samples),
        "held up": lambda samples: clock.compute(next(held_up, 5e-3)),
    }
    assert order_of(paces, Work(1, 1, 1, 10**12), 0.1)[0][0] == "held up"


def test_a_busy_machine_makes_no_run_long(clock: Clock) -> None:
    """Waiting for a core is not counted: the run of 4,000 steps takes 0.4 s of the processor's time, 40 s as timed."""

    def slow(samples: int) -> None:
        clock.compute(1e-4)
        clock.wait(1e-2)

    paces, work = {"rule": slow, "other": slow}, Work(1, 1, 1, 4000)
    assert order_of(paces, work, 1.0) == []
    assert len(order_of(paces, work, 0.01)) == 2


def test_steps_that_take_long_are_timed_on_smaller_batches(clock: Clock) -> None:
    """A step of a whole batch takes 10 s."""
    made = [Paced(lambda samples: clock.compute(1e-3 * samples)), Paced(lambda samples: clock.compute(2e-3 * samples))]
    options = [{"executor": place} for place in range(2)]
    timings = tune(problem_of("perceptron"), Work(2, 10_000, 4, 10**6), options, lambda p, v: made[v["executor"]], 0.5)
    assert clock.passed < 5.0
    assert all(max(one.batches) < 1000 for one in made)
    assert [timing.values["executor"] for timing in timings] == [0, 1]
    assert timings[0].seconds == pytest.approx(10.0), "of a whole batch"


@pytest.mark.parametrize(("flags", "tried"), [(["29"], False), (["30"], True), (["30", "--compile", "0"], False)])
def test_compiled_steps_are_tried_where_there_is_time(
    flags: list[str], tried: bool, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []  # compiling takes half a minute, so what would be timed is only listed
    monkeypatch.setattr("fastlocal.choosing.tune", lambda problem, work, options, *rest: seen.extend(options) or [])
    prepared(data, *LONG[:-1], *flags)
    assert ({"executor": "stacked", "compile": True} in seen) == tried and {"executor": "looped"} in seen


def test_two_runs_at_once_remember_both(data: Path, tmp_path: Path, own_cache: Path) -> None:
    words = [sys.executable, "-m", "fastlocal", *train_words(data, "unused")[:-4], "--total-batch-size", "16"]
    words += ["--rounds", "200", "--eval-freq1", "200", "--tune-seconds", "0.05"]
    runs = [
        subprocess.Popen([*words, "--momentum", value, "--log-pth", str(tmp_path / value)], stderr=subprocess.PIPE)
        for value in ("0.0", "0.9")
    ]
    said = [one.communicate(timeout=600)[1].decode() for one in runs]
    assert [one.returncode for one in runs] == [0, 0], said
    held = json.loads(own_cache.read_text())
    chosen = {value["fastest"]["executor"] for value in held.values()}
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("0.0", "0.9")]
    assert len(held) == 2 and {config["machine"]["executor"] for config in configs} == chosen
    assert {path.name for path in own_cache.parent.iterdir()} == {"tuning.json", "native"}


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf"])
def test_impossible_seconds(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "train", "--tune-seconds", seconds)
    assert outcome.status == 2 and "--tune-seconds" in outcome.err and "0 or more" in outcome.err
