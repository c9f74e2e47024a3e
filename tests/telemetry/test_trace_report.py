"""The arithmetic of a profile, on traces written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from fastlocal.telemetry.trace_report import ProfiledRounds, format_report, report

WORK = ProfiledRounds(
    first_round=2,
    rounds=1,
    clients=4,
    local_steps=2,
    samples=64,
    seconds=1e-3,
    row_bytes=1000,
    flops=10**6,
    moments=1,
    eval_every=10,
    copy=1e9,
    matmul=1e12,
    precision="float32",
)


def event(kind: str, name: str, begin: float, length: float, thread: int = 1) -> dict[str, Any]:
    return {"ph": "X", "cat": kind, "name": name, "ts": begin, "dur": length, "tid": thread}


def span(name: str, begin: float, length: float, thread: int = 1, kind: str = "user_annotation") -> dict[str, Any]:
    return event(kind, f"fastlocal::{name}", begin, length, thread)


def on_gpu() -> list[dict[str, Any]]:
    """Two local steps of 200 us, one average, one evaluation of 500 us, in a millisecond."""
    found = [span("plan", 0, 50), span("average", 450, 40), span("evaluate", 500, 500)]
    for begin in (50, 250):
        found += [span("forward", begin, 100), span("backward", begin + 100, 60), span("client_sgd", begin + 160, 20)]
        found.append(span("client_sgd", begin + 200, 10, kind="gpu_user_annotation"))
        for place in (begin + 10, begin + 110, begin + 165):
            found.append(event("cuda_runtime", "cudaLaunchKernel", place, 5))
        found.append(event("cuda_driver", "cuLaunchKernelEx", begin + 170, 5))
        found += [event("kernel", "conv", begin + 20, 80, 7), event("kernel", "sgd", begin + 170, 10, 7)]
    found.append(event("cuda_runtime", "cudaStreamSynchronize", 120, 5))
    found.append(event("cuda_runtime", "cudaMemcpyAsync", 130, 5))
    found += [event("cuda_runtime", "cudaStreamSynchronize", 460, 5), event("cuda_runtime", "cudaLaunchKernel", 600, 5)]
    return found


def test_shares_of_a_round_leave_the_evaluation_out_and_add_up() -> None:
    found = report(on_gpu(), WORK)
    assert found.training_seconds == pytest.approx(5e-4)
    assert found.spans == pytest.approx(
        {"plan": 0.1, "forward": 0.4, "backward": 0.24, "client_sgd": 0.08, "average": 0.08, "other": 0.1}
    )


def test_an_evaluation_counts_as_often_as_the_run_has_one() -> None:
    found = report(on_gpu(), WORK)
    assert found.evaluation_seconds == pytest.approx(5e-4)
    assert found.evaluation_share == pytest.approx(1 / 11)
    without = report([one for one in on_gpu() if one["name"] != "fastlocal::evaluate"], WORK)
    assert without.evaluation_seconds is None and without.evaluation_share is None
    assert "no evaluation in these rounds; the run has one every 10 rounds" in format_report(without, WORK)


def test_launches_and_waits_are_those_of_local_steps() -> None:
    """Neither the average's nor the evaluation's; a copy that nobody waits for is no wait."""
    found = report(on_gpu(), WORK)
    assert (found.launches, found.syncs) == (4.0, 0.5)
    assert found.top == [("conv", pytest.approx(160e-6), 2), ("sgd", pytest.approx(20e-6), 2)]


def test_rates_are_those_of_the_device_where_it_has_kernels() -> None:
    """5 buffers of 4 clients in 2 steps are 40,000 bytes; the GPU takes 20 us for them, the host 40."""
    printed = format_report(report(on_gpu(), WORK), WORK)
    assert "client_sgd: 2.0 GB/s, 200.0% of a copy's 1.0" in printed
    assert "128.0 GFLOP/s, 12.8% of a float32 matrix product's 1,000" in printed
    assert "4.0 kernel launches per local step, 0.50 host synchronisations" in printed


def test_kernels_of_a_replayed_step_are_told_apart_by_their_order() -> None:
    names = [
        "index",
        "_gather_augment",
        "conv",
        "_label_noise_loss",
        "conv",
        "cat",
        "_client_norm",
        "_client_sgd",
        "add",
    ]
    events = [
        span("local_step", 50, 400),
        {**event("cuda_runtime", "cudaGraphLaunch", 60, 5), "args": {"correlation": 7}},
    ]
    for place, name in enumerate(names):
        events.append({**event("kernel", name, 70 + 10 * place, 2**place, 7), "args": {"correlation": 7}})
    events.append({**event("kernel", "conv", 500, 5, 7), "args": {"correlation": 8}})  # not of the graph
    spent = {"data": 3e-6, "forward": 12e-6, "backward": 48e-6, "client_sgd": 448e-6}
    assert report(events, WORK).replayed == pytest.approx(spent)
    assert "forward 0.006, backward 0.024, client_sgd 0.224" in format_report(report(events, WORK), WORK)
    without = [one for one in events if one["name"] != "_label_noise_loss"]
    assert list(report(without, WORK).replayed) == ["local_step"]


def test_threads_that_work_at_once_share_the_time() -> None:
    events = [span("forward", 0, 600), span("backward", 600, 200), span("forward", 0, 800, thread=2)]
    found = report(events, WORK)
    assert found.spans == pytest.approx({"forward": 0.8 * 1400 / 1600, "backward": 0.8 * 200 / 1600, "other": 0.2})


def test_on_a_cpu_an_operation_has_the_time_that_those_it_calls_leave_it() -> None:
    events = [
        span("forward", 0, 500),
        event("cpu_op", "aten::linear", 10, 100),
        event("cpu_op", "aten::addmm", 20, 70),
        event("cpu_op", "aten::addmm", 200, 30),
        event("cpu_op", "aten::_local_scalar_dense", 300, 1),
        event("cpu_op", "aten::addmm", 50, 40, thread=2),
    ]
    found = report(events, WORK)
    assert found.top == [
        ("aten::addmm", pytest.approx(140e-6), 3),
        ("aten::linear", pytest.approx(30e-6), 1),
        ("aten::_local_scalar_dense", pytest.approx(1e-6), 1),
    ]
    assert (found.launches, found.syncs) == (2.0, 0.5)
