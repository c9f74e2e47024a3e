"""Spans of the local steps that a CUDA graph replays, which shows a profiler its kernels alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

REPLAYED = (
    ("data", ("_gather_augment",)),
    ("backward", ("_label_noise_loss", "nll_loss")),
    ("client_sgd", ("_client_norm", "_client_sgd", "_client_adamw")),
)
"""Spans of a replayed step, in order, and parts of the names of kernels: the first of data and client_sgd begins its
span; backward begins after the last of the loss, and forward after the data."""

Event = dict[str, Any]


def replayed_spans(kernels: Iterable[Event], calls: Iterable[Event]) -> dict[str, float]:
    """Return the seconds of each span of the steps that CUDA graphs replay, in order of their kernels."""
    launched = {_correlation(call) for call in calls if "GraphLaunch" in call["name"]}
    graphs: dict[Any, list[Event]] = defaultdict(list)
    for kernel in kernels:
        if _correlation(kernel) in launched:
            graphs[_correlation(kernel)].append(kernel)
    found: dict[str, float] = {}
    for step in graphs.values():
        step.sort(key=lambda kernel: kernel["ts"])
        for kernel, name in zip(step, _step_spans([kernel["name"] for kernel in step]), strict=True):
            found[name] = found.get(name, 0.0) + kernel["dur"] / 1e6
    return found


def _correlation(event: Event) -> Any:
    return event.get("args", {}).get("correlation")


def _step_spans(names: Sequence[str]) -> list[str]:
    """Return the span of each kernel of one step, in order; "local_step" if no kernel is the loss's."""
    places = {
        span: [place for place, name in enumerate(names) if any(part in name for part in parts)]
        for span, parts in REPLAYED
    }
    if not places["backward"]:
        return ["local_step"] * len(names)
    forward = places["data"][-1] + 1 if places["data"] else 0
    backward = places["backward"][-1] + 1
    update = places["client_sgd"][0] if places["client_sgd"] else len(names)
    ends = (("data", forward), ("forward", backward), ("backward", update), ("client_sgd", len(names)))
    return [next(span for span, end in ends if place < end) for place in range(len(names))]
