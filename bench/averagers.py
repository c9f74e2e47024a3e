"""Ways to average one model per client over ranks, as bench.averaging times them; one rank of several."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer

from fastlocal.aggregation.averager import make_averager
from fastlocal.models import build

PLAIN = "cat + all_reduce + copy"
PERIODIC, POST_LOCAL = "PeriodicModelAverager", "PostLocalSGDOptimizer, with its SGD step"
FORMATS: dict[str, dict[str, Any]] = {
    "fastlocal": {},
    "fastlocal bf16": {"wire_format": "bf16"},
    "fastlocal fp16": {"wire_format": "fp16"},
    "fastlocal fixed": {"reduce_order": "fixed"},
}
AT_END, EARLY = "4 chunks, averaged at the end", "4 chunks, each averaged while the next trains"
CHANGE = 1e-3
"""Of a parameter in a round, by its standard deviation."""
ROUNDED = {"fastlocal bf16": 2.0**-6, "fastlocal fp16": 2.0**-9}
"""How far a mean may be from the exact one, relative to the largest change; beside the rounding of float32."""


@dataclass(frozen=True)
class Way:
    """before: bring back what local training leaves, not timed        run: what is timed        mean: the result"""

    before: Callable[[], object]
    run: Callable[[], object]
    mean: Callable[[], Tensor]


def flat(module: nn.Module) -> Tensor:
    return torch.cat([value.detach().reshape(-1) for value in module.parameters()])


def trained(row: Tensor, client: int) -> Tensor:
    """What a client's local steps make of the row."""
    draw = torch.Generator().manual_seed(client + 1)
    return row + CHANGE * torch.randn(len(row), generator=draw)


@torch.no_grad()
def load(module: nn.Module, row: Tensor) -> None:
    for value, part in zip(module.parameters(), row.split([v.numel() for v in module.parameters()]), strict=True):
        value.copy_(part.view_as(value))


def plain(module: nn.Module, mine: Tensor) -> Way:
    """One model per rank: flatten into a kept buffer, sum over ranks, divide, copy back."""
    buffer = torch.empty_like(mine)
    sizes = [value.numel() for value in module.parameters()]

    @torch.no_grad()
    def run() -> None:
        torch.cat([value.reshape(-1) for value in module.parameters()], out=buffer)
        dist.all_reduce(buffer)
        buffer.div_(dist.get_world_size())
        for value, part in zip(module.parameters(), buffer.split(sizes), strict=True):
            value.copy_(part.view_as(value))

    return Way(lambda: load(module, mine), run, lambda: buffer)


def _averager() -> PeriodicModelAverager:
    with warnings.catch_warnings():  # that averaging at each call is seldom wanted
        warnings.simplefilter("ignore")
        return PeriodicModelAverager(period=1)


def periodic(module: nn.Module, mine: Tensor) -> Way:
    """PyTorch's averager, which leaves out parameters without a gradient."""
    for value in module.parameters():
        value.grad = torch.zeros_like(value)
    averager = _averager()
    return Way(
        lambda: load(module, mine), lambda: averager.average_parameters(module.parameters()), lambda: flat(module)
    )


def post_local(module: nn.Module, mine: Tensor) -> Way:
    """PyTorch's optimizer, at a rate of 0."""
    for value in module.parameters():
        value.grad = torch.zeros_like(value)
    inner = torch.optim.SGD(module.parameters(), lr=0.0)
    optimizer = PostLocalSGDOptimizer(inner, _averager())
    return Way(lambda: load(module, mine), lambda: optimizer.step(), lambda: flat(module))


def ours(row: Tensor, mine: Tensor, bucket_mb: float, **how: Any) -> Way:
    """From the client's row in the chunk's buffer to the next round's start in it, as fastlocal.training.loop does."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    averager = make_averager(row, ranks, nodes=[0] * ranks, rank=rank, bucket_mb=bucket_mb, **how)
    params, start = mine.unsqueeze(0).clone(), row.clone()

    def before() -> None:
        start.copy_(row)
        params.copy_(mine)

    def run() -> None:
        averager.accumulate(params, last=True)
        averager.start(start)
        start.copy_(averager.finish())
        params.copy_(start.expand_as(params))

    return Way(before, run, lambda: start)


def chunked(row: Tensor, chunks: list[Tensor], early: bool, step: Callable[[], object]) -> Way:
    """A round of several chunks of one client, each after its local `step`, averaged plainly in the row's dtype.

    early: every chunk has an all-reduce of its own while the next chunk trains, instead of one for all at the end
    """
    clients = dist.get_world_size() * len(chunks)
    wires, mean = [torch.empty_like(row) for _ in chunks], torch.empty_like(row)

    def run() -> None:
        works = []
        for number, (params, wire) in enumerate(zip(chunks, wires, strict=True)):
            step()
            torch.sub(params, row, out=wire)
            if number and not early:
                wire.add_(wires[number - 1])
            if early or number == len(chunks) - 1:
                works.append((dist.all_reduce(wire, async_op=True), wire))
        mean.copy_(row)
        for work, wire in works:
            work.wait()
            mean.add_(wire, alpha=1 / clients)

    return Way(lambda: None, run, lambda: mean)


def ways(model: str, bucket_mb: float, train_ms: float) -> Iterator[tuple[str, Way, Tensor]]:
    """Each by its name, with the exact mean in float64."""
    module = build(model, in_channels=3, classes=10, image_size=(32, 32))
    row = flat(module)
    ranks, rank = dist.get_world_size(), dist.get_rank()

    def exact(clients: int) -> Tensor:
        total = torch.zeros(len(row), dtype=torch.float64)
        for client in range(clients):
            total += trained(row, client)
        return total / clients

    mine, mean = trained(row, rank), exact(ranks)
    yield PLAIN, plain(module, mine), mean
    yield "fastlocal", ours(row, mine, bucket_mb), mean
    for name, how in list(FORMATS.items())[1:]:
        yield name, ours(row, mine, bucket_mb, **how), mean
    for name, make in ((PERIODIC, periodic), (POST_LOCAL, post_local)):
        yield name, make(build(model, in_channels=3, classes=10, image_size=(32, 32)), mine), mean
    if len(row) < 2_000_000:
        chunks = [trained(row, rank * 4 + number) for number in range(4)]
        mean, step = exact(4 * ranks), busy(train_ms)
        for name, early in ((AT_END, False), (EARLY, True)):
            yield name, chunked(row, chunks, early, step), mean


def busy(milliseconds: float) -> Callable[[], None]:
    """A stretch of arithmetic in place of local steps: the same amount each time, whoever else computes."""
    left, out = torch.randn(192, 192), torch.empty(192, 192)

    def once(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            torch.mm(left, left, out=out)
        return (time.perf_counter() - began) * 1e3

    each = min(once(20) for _ in range(5)) / 20
    count = max(1, round(milliseconds / each))
    return lambda: (once(count), None)[1]


def fault_of(name: str, way: Way, exact: Tensor, row_change: float) -> str:
    """Whether one average is what it should be."""
    way.before()
    way.run()
    off = (way.mean().double() - exact).abs()
    allowed = 2.0**-21 * exact.abs() + (ROUNDED.get(name, 0.0) + 2.0**-20) * row_change
    return "" if bool((off <= allowed).all()) else f"its mean is {off.max():.2g} away from the exact one"
