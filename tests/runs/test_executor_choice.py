"""--executor auto: what is timed, what is remembered, and what is left alone."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from fastlocal.commands.flags import parse
from fastlocal.common import disk_cache
from fastlocal.common.disk_cache import cache_file
from fastlocal.executors.tuning.executor_timing import Tuning
from fastlocal.runs import resolve
from fastlocal.runs.build import PreparedRun
from fastlocal.runs.executor_choice import candidates
from fastlocal.runs.from_config import run_from_config
from tests.executors.problems import EXECUTORS
from tests.helpers.command_line import run, train_words

LONG = ("--epochs", "10000000", "--tune-seconds", "0.2")


@pytest.fixture(autouse=True)
def own_cache(own_cache_home: Path) -> Path:
    return own_cache_home / "tuning.json"


def kept_in(folder: Path) -> set[str]:
    """Its files, but for what is known of the kernels, which a process asks for once."""
    return {path.name for path in folder.iterdir()} - {"verified.json"}


def prepared(data: Path, *flags: str) -> PreparedRun:
    return run_from_config(parse([*train_words(data, "unused")[1:], *flags]).run, lambda text: None)


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
    monkeypatch.setattr(disk_cache, "SOURCES", (*disk_cache.SOURCES, tmp_path / "code"))
    prepared(data, *LONG)
    assert len(prepared(data, *LONG).notes) == 1
    source.write_text("fast")
    assert len(prepared(data, *LONG).notes) > 1


def test_a_run_of_seconds_starts_at_once(data: Path, own_cache: Path) -> None:
    for model, executor in (("mlp", "stacked"), ("cnn", "looped")):
        found = prepared(data, "--model", model)
        assert found.config.machine.executor == executor and "timed" not in str(found.notes)
    assert not own_cache.exists()


UNTIMED = [("--epochs", "10000000", "--tune-seconds", "0"), ("--epochs", "10000000", "--tune-seconds", "1e9")]


@pytest.mark.parametrize("flags", UNTIMED)
def test_a_longer_run_without_timing_takes_the_likely_fastest(flags: tuple[str, ...], data: Path) -> None:
    """Threads, where there are several clients for several of them."""
    flags = (*flags, "--workers", "2")
    for more, executor in (
        (("--model", "mlp"), "stacked"),
        (("--model", "2nn"), "threaded"),
        (("--model", "cnn"), "threaded"),
        (("--model", "cnn", "--workers", "1"), "looped"),
    ):
        found = prepared(data, *flags, *more)
        assert found.config.machine.executor == executor and "timed" not in str(found.notes)


def test_what_was_chosen_is_never_timed_again(data: Path, own_cache: Path) -> None:
    found = prepared(data, *LONG, "--executor", "looped")
    assert found.config.machine.executor == "looped" and found.notes == ()
    with_config = parse(["--config", str(_written(found, data.parent / "config.json"))]).run
    again = run_from_config(with_config, lambda text: None)
    assert again.config.machine == found.config.machine and again.notes == () and not own_cache.exists()


def _written(found: PreparedRun, path: Path) -> Path:
    path.write_text(found.config.to_json())
    return path


def test_what_the_user_gave_is_kept(data: Path) -> None:
    found = prepared(data, *LONG, "--model", "cnn", "--chunk", "1", "--workers", "2", "--channels-last")
    machine = found.config.machine
    assert (machine.chunk, machine.workers) == (1, 2)
    timed = [line for line in found.notes if "--executor threaded" in line]
    assert len(timed) == 1 and "--channels-last 1" in timed[0]


def test_a_chunk_is_of_the_size_for_what_was_taken(
    data: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = 4 * prepared(data).layout.n_params
    monkeypatch.setattr(resolve, "CHUNK_BYTES", 2 * row)
    prepared(data, *LONG)
    ((key, value),) = json.loads(own_cache.read_text()).items()
    for executor, chunk in (("looped", 2), ("stacked", 1)):
        own_cache.write_text(json.dumps({key: {**value, "fastest": {"executor": executor}}}))
        machine = prepared(data, *LONG).config.machine
        assert (machine.executor, machine.chunk) == (executor, chunk)


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
    problem = dataclasses.replace(found.problem, numerics=numerics)
    machine = dataclasses.replace(found.config.machine, executor="auto", cuda_graph=None)
    assert candidates(found.config, machine, problem) == [{"executor": "stacked"}]
    launched = dataclasses.replace(machine, cuda_graph=False)
    assert candidates(found.config, launched, problem) == [{"executor": "stacked"}, {"executor": "looped"}]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 1}', "\x00\xff"])
def test_a_file_that_is_none(text: str, data: Path, own_cache: Path) -> None:
    own_cache.write_text(text)
    assert len(prepared(data, *LONG).notes) > 1
    assert len(json.loads(own_cache.read_text())) in (1, 2)


def test_entries_of_another_kind(data: Path, own_cache: Path) -> None:
    prepared(data, *LONG)
    (key,) = json.loads(own_cache.read_text())
    for value in (None, 3, "threaded", {"fastest": {"executor": "fast"}, "default_s": 1.0}, {"fastest": {}}):
        own_cache.write_text(json.dumps({key: value}))
        assert prepared(data, *LONG).config.machine.executor in EXECUTORS


def test_a_cache_that_cannot_be_written(data: Path, own_cache: Path) -> None:
    shutil.rmtree(own_cache.parent)
    own_cache.parent.write_text("a file where a folder should be")
    assert prepared(data, *LONG).config.machine.executor in EXECUTORS


def test_a_user_without_a_home(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs with some number of a user."""

    def unknown(number: int) -> Any:
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert any(note.endswith(" ms") for note in prepared(data, *LONG).notes)


def test_nothing_is_remembered_where_nothing_can_be_written(
    data: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert f"remembered in {own_cache}" in prepared(data, *LONG).notes[-1]
    assert disk_cache.once(own_cache) == ", once for this machine"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    notes = prepared(data, *LONG).notes
    assert "taking the first" in notes and not any("remembered in" in note for note in notes)
    assert disk_cache.once(cache_file("verified.json")) == ""
    monkeypatch.setattr(disk_cache.os, "replace", full)
    assert not disk_cache.put(own_cache, "more", 1) and kept_in(own_cache.parent) >= {"tuning.json"}
    assert not any(path.name.startswith(".") for path in own_cache.parent.iterdir())


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_writers_at_once_leave_a_whole_file(own_cache: Path) -> None:
    assert own_cache == cache_file("tuning.json")
    failed: list[Any] = []

    def write(name: str) -> None:
        for number in range(30):
            disk_cache.put(own_cache, f"{name}{number}", [number] * 100)
            try:
                json.loads(own_cache.read_text())
            except ValueError as error:
                failed.append(error)

    writers = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed and kept_in(own_cache.parent) == {"tuning.json", "native"}
    assert len(json.loads(own_cache.read_text())) == 120, "no writer loses another's entry"
    disk_cache.put(own_cache, "last", 7)
    assert disk_cache.get(own_cache, "last") == 7


@pytest.mark.parametrize(("flags", "tried"), [(["29"], False), (["30"], True), (["30", "--compile", "0"], False)])
def test_compiled_steps_are_tried_where_there_is_time(
    flags: list[str], tried: bool, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []  # compiling takes half a minute, so what would be timed is only listed
    tune = "fastlocal.runs.executor_choice.tune"
    monkeypatch.setattr(tune, lambda problem, work, options, *rest: seen.extend(options) or Tuning([], None))
    prepared(data, *LONG[:-1], *flags)
    assert ({"executor": "stacked", "compile": True} in seen) == tried and {"executor": "looped"} in seen


def test_two_runs_at_once_remember_both(data: Path, tmp_path: Path, own_cache: Path) -> None:
    words = [sys.executable, "-m", "fastlocal", *train_words(data, "unused")[:-4], "--total-batch-size", "16"]
    words += ["--rounds", "200", "--eval-freq1", "200", "--tune-seconds", "0.005"]
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
    assert kept_in(own_cache.parent) == {"tuning.json", "native"}


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf"])
def test_impossible_seconds(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "train", "--tune-seconds", seconds)
    assert outcome.status == 2 and "--tune-seconds" in outcome.err and "0 or more" in outcome.err
