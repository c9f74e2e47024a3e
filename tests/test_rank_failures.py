"""Ranks that are gone, stuck or wrong: the others say which, and end."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.many import ends, start

ENDLESS = (
    *("train", "--dataset", "digits", "--device", "cpu", "--clients", "4", "--batch-size", "2", "--tune-seconds", "0"),
    *("--rounds", "1000000", "--eval-freq1", "1000000", "--save-every", "0"),
)


def training(directory: Path, seconds: float = 60) -> None:
    """Wait until a run's rounds have begun."""
    until = time.monotonic() + seconds
    while not (directory / "config.json").exists():
        assert time.monotonic() < until, "the run did not begin"
        time.sleep(0.05)
    time.sleep(1)


@pytest.mark.parametrize(
    ("number", "gone", "said"),
    [
        (signal.SIGKILL, 1, "rank 1 (process {pid} on {host}) is gone, waited for at"),
        (signal.SIGKILL, 0, "gone"),
        (signal.SIGSTOP, 1, "rank 1 (process {pid} on {host}) did not come within 3 s, waited for at the end of round"),
    ],
)
def test_a_rank_that_does_not_come_is_named(number: int, gone: int, said: str, tmp_path: Path) -> None:
    words = (*ENDLESS, "--timeout", "3", "--log-pth", tmp_path / "run")
    ranks = start(words, words)
    try:
        training(tmp_path / "run")
        began = time.monotonic()
        ranks[gone].send_signal(number)
        (status, text), *_ = ends([ranks[1 - gone]], timeout=40)
    finally:
        ranks[gone].kill()
        ends([ranks[gone]])
    assert status == 1, text
    assert "Traceback" not in text
    assert time.monotonic() - began < 20
    said, _, _ = said.partition(" on {host}")
    assert said.format(pid=ranks[gone].pid) in text.splitlines()[-1], text


def test_one_rank_s_mistake_ends_them_all(tmp_path: Path) -> None:
    right = (*ENDLESS[:-2], "--log-pth", tmp_path / "run")
    wrong = (*right, "--resume-pth", tmp_path / "not there.pt")
    (first, said), (second, silent) = ends(start(right, wrong))
    assert (first, second) == (2, 2)
    assert said.splitlines()[-1].startswith("fastlocal: error: rank 1: --resume-pth") and silent == ""
    assert not (tmp_path / "run").exists()


def test_fewer_clients_than_ranks(tmp_path: Path) -> None:
    words = (*ENDLESS, "--clients", "1", "--log-pth", tmp_path / "run")
    (first, said), (second, silent) = ends(start(words, words))
    assert (first, second) == (2, 2)
    assert said.splitlines() == [
        "fastlocal: error: --clients 1: fewer than the 2 processes; give at least as many, or start fewer processes"
    ]
    assert silent == "" and not (tmp_path / "run").exists()
