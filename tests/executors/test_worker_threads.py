"""Worker threads: each has one intra-op thread, and none outlives a round."""

from __future__ import annotations

import signal
import threading

import pytest
import torch

from fastlocal.common import interrupts
from fastlocal.executors.threaded import ThreadedExecutor
from tests.executors.problems import STEPS, start
from tests.executors.test_threaded import ReadsValues, problem_with
from tests.helpers.command_line import run


def test_every_worker_has_one_intra_op_thread_and_the_caller_keeps_its_own() -> None:
    seen = set()
    problem = problem_with(
        ReadsValues(lambda: seen.add((threading.current_thread().name[:9], torch.get_num_threads())))
    )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        ThreadedExecutor(problem, workers=2).run_round(*start(problem))
        assert torch.get_num_threads() == 3
        fresh = []
        thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert fresh == [3]
    finally:
        torch.set_num_threads(before)
    assert {count for name, count in seen if name == "fastlocal"} == {1}


class Failure(Exception):
    pass


def test_an_exception_stops_all_workers() -> None:
    calls = []

    def told() -> None:
        if threading.current_thread() is not threading.main_thread():
            calls.append(0)
            if len(calls) == 3:
                raise Failure

    problem = problem_with(ReadsValues(told))
    with pytest.raises(Failure):
        ThreadedExecutor(problem, workers=2).run_round(*start(problem, clients=200))
    assert len(calls) < 200
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastlocal-worker")]


@pytest.mark.parametrize("deferred", [True, False])
def test_a_signal_stops_all_workers(deferred: bool) -> None:
    calls = []

    def told() -> None:
        if threading.current_thread() is not threading.main_thread():
            calls.append(0)
            if len(calls) == 3:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    problem = problem_with(ReadsValues(told))
    executor = ThreadedExecutor(problem, workers=2)
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            if deferred:
                with interrupts.defer_signals():
                    executor.run_round(*start(problem, clients=3000))
            else:
                executor.run_round(*start(problem, clients=3000))
    finally:
        signal.signal(signal.SIGINT, usual)
        interrupts._forget()
    assert len(calls) < 3000 * STEPS
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastlocal-worker")]


@pytest.mark.parametrize("workers", [0, 1025])
def test_impossible_numbers_of_workers(workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "train", "--workers", workers)
    assert outcome.status == 2 and f"--workers {workers}: must be at" in outcome.err
