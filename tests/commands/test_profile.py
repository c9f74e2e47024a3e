"""fastlocal profile, and --profile within a run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.command_line import metrics, run, train_words, tree, write_npz


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_npz(tmp_path / "data.npz")


def events(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        found: list[dict[str, Any]] = json.load(file)["traceEvents"]
    return found


def spans(directory: Path) -> dict[str, int]:
    names = [event["name"] for event in events(directory / "trace_rank0.pt.trace.json.gz") if event.get("ph") == "X"]
    return {name: names.count(name) for name in sorted(set(names)) if name.startswith("fastlocal::")}


def test_profile_trains_a_few_rounds_and_tells_where_the_time_went(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = train_words(data, tmp_path / "run")[1:]
    rule = ("--sync", "qsr", "--qsr-alpha", "1e-3", "--h-min", "2", "--lr-schedule", "cosine", "--epochs", "50")
    done = run(capsys, "profile", *words[:-2], *rule, "--eval-freq1", "7", "--profile-rounds", "2")
    assert done.status == 0, done.err
    assert [row["comm_round"] for row in metrics(tmp_path / "run")] == [1, 2, 3]
    assert "rounds 2 to 3: 4 local steps of 2 clients" in done.out
    assert "every 7 rounds" in done.out and "fused: nothing" in done.out
    assert {"trace_rank0.pt.trace.json.gz", "profile_rank0.txt"} < tree(tmp_path / "run")
    found = spans(tmp_path / "run")
    assert found["fastlocal::forward"] + found["fastlocal::local_step"] == found["fastlocal::client_sgd"] == 4
    assert found["fastlocal::evaluate"] == found["fastlocal::server"] == 2


@pytest.mark.parametrize("executor", ["stacked", "looped"])
def test_a_profiled_run_goes_on_with_the_same_results(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], executor: str
) -> None:
    for name, more in (("plain", ()), ("profiled", ("--profile", "--profile-rounds", "1"))):
        words = train_words(data, tmp_path / name)
        done = run(capsys, *words, "--executor", executor, "--model", "cnn", *more)
        assert done.status == 0, done.err
    assert metrics(tmp_path / "profiled") == metrics(tmp_path / "plain")
    assert (tmp_path / "profiled" / "latest.pt").read_bytes() == (tmp_path / "plain" / "latest.pt").read_bytes()
    assert "profiled rounds 2 to 2" in done.err
    new = tree(tmp_path / "profiled") - tree(tmp_path / "plain")
    assert new == {"trace_rank0.pt.trace.json.gz", "profile_rank0.txt"}


def test_a_run_that_ends_early_is_profiled_as_far_as_it_goes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(capsys, *train_words(data, tmp_path / "two"), "--step1", "2", "--profile", "1")
    assert done.status == 0 and "profiled rounds 2 to 2" in done.err
    done = run(capsys, *train_words(data, tmp_path / "one"), "--step1", "4", "--profile", "1")
    assert done.status == 0 and "not profiled: the run ended within its first two rounds" in done.err
    assert "trace_rank0.pt.trace.json.gz" not in tree(tmp_path / "one")


def test_profile_rounds_must_be_positive(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(capsys, "profile", *train_words(data, tmp_path / "run")[1:], "--profile-rounds", "0")
    assert done.status == 2 and "--profile-rounds 0: must be at least 1" in done.err
    assert not (tmp_path / "run").exists()


def test_worker_threads_are_seen(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their steps are one program each, in threads that were not there when the profiler began."""
    words = [*train_words(data, tmp_path / "run")[1:], "--executor", "threaded", "--workers", "2"]
    done = run(capsys, "profile", *words, "--profile-rounds", "2")
    assert done.status == 0, done.err
    assert spans(tmp_path / "run")["fastlocal::local_step"] == 4
    assert "local_step" in done.out and "0.00 values read by the host" in done.out
