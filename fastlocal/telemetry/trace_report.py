"""Report on the trace of some rounds: time per span, kernel launches, and fractions of the machine's ceilings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .replayed_steps import replayed_spans
from .trace import PREFIX

STEP_SPANS = ("data", "forward", "backward", "client_sgd", "local_step")
SPANS = ("plan", *STEP_SPANS, "average", "server")
"""Spans of a round, as in telemetry.trace; `evaluate` is counted apart."""
TOP = 12
SYNCHRONISING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
LAUNCHING = ("LaunchKernel", "GraphLaunch")
READ_BY_HOST = "aten::_local_scalar_dense"

Event = dict[str, Any]
Interval = tuple[float, float]


@dataclass(frozen=True)
class ProfiledRounds:
    """Numbers of the profiled rounds.

    Attributes:
        first_round: First profiled round.
        rounds: Number of rounds.
        clients: Number of clients.
        local_steps: Local steps of all rounds, each of all clients.
        samples: Training samples of all clients.
        seconds: Time from the begin of the first round to the end of the last one.
        row_bytes: Size of one client's parameters.
        flops: Operations of one sample's forward and backward pass.
        moments: Rows that the optimizer keeps for each client.
        eval_every: Rounds between evaluations.
        copy: Measured copy bandwidth, bytes per second.
        matmul: Measured rate of a matrix product, FLOP/s.
        precision: dtype of that product.
    """

    first_round: int
    rounds: int
    clients: int
    local_steps: int
    samples: int
    seconds: float
    row_bytes: int
    flops: int
    moments: int
    eval_every: int
    copy: float
    matmul: float
    precision: str


@dataclass(frozen=True)
class Report:
    """Results of a trace.

    Attributes:
        on_gpu: Whether the trace holds GPU kernels.
        training_seconds: Profiled time without evaluations.
        spans: Share of each span, and `other`, of the training time; they add up to 1.
        span_seconds: Total of each span: device time if it has kernels, else host time, summed over threads.
        evaluation_seconds: Time of one evaluation with its saves, or None without one.
        evaluation_share: Share of evaluations in the run's time, or None.
        replayed: Seconds of kernels of CUDA graphs in each span of a step, told apart by their names; empty without.
        top: (name, seconds, calls) of kernels, on a CPU of operations, by their own time.
        launches: Kernel launches per local step of all clients; on a CPU, operations.
        syncs: Host synchronisations per local step; on a CPU, values that Python reads.
    """

    on_gpu: bool
    training_seconds: float
    spans: dict[str, float]
    span_seconds: dict[str, float]
    evaluation_seconds: float | None
    evaluation_share: float | None
    replayed: dict[str, float]
    top: list[tuple[str, float, int]]
    launches: float
    syncs: float


def report(events: Iterable[Event], work: ProfiledRounds) -> Report:
    """Evaluate the events of a Chrome trace, times in microseconds."""
    kinds: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event.get("ph") == "X":
            kinds[event.get("cat", "")].append(event)
    host, device = (_spans(kinds[name]) for name in ("user_annotation", "gpu_user_annotation"))
    stepping = _step_intervals(host)
    evaluations = host.pop("evaluate", [])
    device.pop("evaluate", None)
    evaluated = _length(evaluations) / 1e6
    training = work.seconds - evaluated
    seconds = {name: _length(found) / 1e6 for name, found in host.items()}
    # concurrent threads share the elapsed time
    elapsed = _length(_union(place for found in host.values() for place in found)) / 1e6
    scale = min(elapsed / max(sum(seconds.values()), 1e-9), 1.0) / training
    shares = {name: seconds[name] * scale for name in SPANS if name in seconds}
    shares["other"] = max(1.0 - sum(shares.values()), 0.0)
    each = evaluated / len(evaluations) if evaluations else None
    round_seconds = training / work.rounds
    on_gpu = bool(kinds["kernel"])
    calls = kinds["cuda_runtime"] + kinds["cuda_driver"]
    operations = [] if on_gpu else list(_own_times(kinds["cpu_op"]))
    if on_gpu:
        launches = [call for call in calls if any(part in call["name"] for part in LAUNCHING)]
        syncs = [call for call in calls if call["name"] in SYNCHRONISING]
    else:
        launches = [event for event, _, leaf in operations if leaf]
        syncs = [event for event in kinds["cpu_op"] if event["name"] == READ_BY_HOST]
    own = [(event["name"], event["dur"]) for event in kinds["kernel"]] if on_gpu else []
    own += [(event["name"], time) for event, time, _ in operations]
    return Report(
        on_gpu=on_gpu,
        training_seconds=training,
        spans=shares,
        span_seconds=seconds | {name: _length(found) / 1e6 for name, found in device.items()},
        evaluation_seconds=each,
        evaluation_share=None if each is None else each / (each + round_seconds * work.eval_every),
        replayed=replayed_spans(kinds["kernel"], calls),
        top=_top(own),
        launches=_count_within(launches, stepping) / work.local_steps,
        syncs=_count_within(syncs, stepping) / work.local_steps,
    )


def format_report(found: Report, work: ProfiledRounds) -> str:
    """Format the report as lines of text."""
    last = work.first_round + work.rounds - 1
    lines = [
        f"rounds {work.first_round} to {last}: {work.local_steps} local steps of {work.clients} clients, "
        f"{work.seconds:.3f} s, {work.samples / work.seconds:,.0f} samples/s while profiled",
        "",
        f"{'span':<28}{'share':>8}{'ms/round':>12}{'ms/local step':>15}",
    ]
    for name, share in found.spans.items():
        spent = share * found.training_seconds * 1e3
        per_step = f"{spent / work.local_steps:15.3f}" if name in STEP_SPANS else ""
        lines.append(f"{name:<28}{share:8.1%}{spent / work.rounds:12.3f}{per_step}")
    lines.append(f"averaging takes {found.spans.get('average', 0.0) + found.spans.get('server', 0.0):.1%} of a round")
    if found.evaluation_seconds is None:
        lines.append(f"no evaluation in these rounds; the run has one every {work.eval_every} rounds")
    else:
        every = "every round" if work.eval_every == 1 else f"every {work.eval_every} rounds"
        lines.append(
            f"an evaluation and what it saves take {found.evaluation_seconds * 1e3:.1f} ms: {every}, "
            f"{found.evaluation_share:.1%} of the time"
        )
    if found.replayed:
        parts = (f"{name} {spent * 1e3 / work.local_steps:.3f}" for name, spent in found.replayed.items())
        lines.append(f"kernels of replayed local steps, ms/local step: {', '.join(parts)}")
    what = "kernel" if found.on_gpu else "operation (its own time)"
    lines += ["", f"{what:<44}{'ms/local step':>15}{'calls/local step':>18}"]
    for name, seconds, calls in found.top:
        lines.append(f"{name[:42]:<44}{seconds * 1e3 / work.local_steps:15.3f}{calls / work.local_steps:18.1f}")
    lines += ["", *_rates(found, work)]
    return "\n".join(lines)


def _rates(found: Report, work: ProfiledRounds) -> list[str]:
    launches = "kernel launches" if found.on_gpu else "operations of torch"
    syncs = "host synchronisations" if found.on_gpu else "values read by the host, each a synchronisation on a GPU"
    flops = work.flops * work.samples / found.training_seconds
    lines = [
        f"{found.launches:.1f} {launches} per local step, {found.syncs:.2f} {syncs}",
        f"arithmetic of the model: {flops / 1e9:,.1f} GFLOP/s, {flops / work.matmul:.1%} of a {work.precision} matrix "
        f"product's {work.matmul / 1e9:,.0f}",
    ]
    steps = work.local_steps * work.clients
    sizes = {
        "client_sgd": work.row_bytes * steps * (3 + 2 * work.moments),
        "average": work.row_bytes * work.clients * work.rounds,
    }
    for name, size in sizes.items():
        if found.span_seconds.get(name):
            rate = size / found.span_seconds[name]
            lines.append(f"{name}: {rate / 1e9:,.1f} GB/s, {rate / work.copy:.1%} of a copy's {work.copy / 1e9:,.1f}")
    return lines


def _spans(events: Iterable[Event]) -> dict[str, list[Interval]]:
    found: dict[str, list[Interval]] = defaultdict(list)
    for event in events:
        name = event["name"]
        if name.startswith(PREFIX):
            found[name.removeprefix(PREFIX)].append((event["ts"], event["ts"] + event["dur"]))
    return found


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    """Merge overlapping intervals, in order."""
    merged: list[Interval] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((begin, end))
    return merged


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - begin for begin, end in intervals)


def _step_intervals(spans: dict[str, list[Interval]]) -> list[Interval]:
    """Return an interval from the first to the last of each series of step spans, gaps included."""
    found: list[Interval] = []
    joined = False
    for begin, end, of_step in sorted((*place, name in STEP_SPANS) for name in spans for place in spans[name]):
        if of_step and joined:
            found[-1] = found[-1][0], max(found[-1][1], end)
        elif of_step:
            found.append((begin, end))
        joined = of_step
    return found


def _count_within(events: Sequence[Event], places: list[Interval]) -> int:
    """Count the events that begin within the intervals, which are in order."""
    count, at = 0, 0
    for begin in sorted(event["ts"] for event in events):
        while at < len(places) and places[at][1] < begin:
            at += 1
        count += at < len(places) and begin >= places[at][0]
    return count


def _own_times(operations: Iterable[Event]) -> Iterable[tuple[Event, float, bool]]:
    """Yield each operation, its time without nested operations, and whether it has none."""
    threads: dict[Any, list[Event]] = defaultdict(list)
    for event in operations:
        threads[event["tid"]].append(event)
    for found in threads.values():
        found.sort(key=lambda event: (event["ts"], -event["dur"]))
        own = [float(event["dur"]) for event in found]
        leaf = [True] * len(found)
        callers: list[int] = []
        for index, event in enumerate(found):
            while callers and found[callers[-1]]["ts"] + found[callers[-1]]["dur"] <= event["ts"]:
                callers.pop()
            if callers:
                own[callers[-1]] -= event["dur"]
                leaf[callers[-1]] = False
            callers.append(index)
        yield from zip(found, own, leaf, strict=True)


def _top(own: Iterable[tuple[str, float]]) -> list[tuple[str, float, int]]:
    time: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for name, spent in own:
        time[name] += spent
        calls[name] += 1
    return [(name, spent / 1e6, calls[name]) for name, spent in sorted(time.items(), key=lambda one: -one[1])[:TOP]]
