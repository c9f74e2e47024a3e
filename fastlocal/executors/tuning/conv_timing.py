"""Choose the fastest strategy of each convolution of a stacked module by timing."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from fastlocal import kernels
from fastlocal.kernels import functional
from fastlocal.kernels.conv2d_clients.geometry import Geometry
from fastlocal.kernels.conv2d_clients.operator import allows_tf32, choose, takes_triton

from ...common import disk_cache
from ...common.disk_cache import cache_file, key_of, machine_name
from ..base import LocalProblem
from .conv_strategy import Strategies, convolutions

FLOPS = {"cpu": 5e8, "cuda": 1e12}
"""Limit on the floating-point operations of a timed forward pass; larger layers are timed with fewer clients."""
SAMPLES = 8
"""Samples of the forward pass that records the layers' shapes."""
MAX_WARMUP_RATIO, MAX_TIME_RATIO = 8.0, 1.5
"""A strategy is not timed again if its warm-up, or its time, exceeds the best time by this factor."""


@dataclass(frozen=True)
class Layer:
    """Shapes and options of one client's convolution, which determine its speed.

    Attributes:
        x: Shape of the images, [batch, in, height, width].
        weight: Shape of the weight, [out, in / groups, kernel height, kernel width].
        padding: (height, width), "same" or "valid".
        channels_last: Whether the images are channels-last in memory.
        leads: Whether no layer before it is trained, so that its images need no gradient.
    """

    x: torch.Size
    weight: torch.Size
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    bias: bool
    channels_last: bool
    leads: bool

    @property
    def columns(self) -> int:
        """Size of the im2col matrix: the numbers in all windows together."""
        x, weight = torch.empty(self.x, device="meta"), torch.empty(self.weight, device="meta")
        y = F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)  # type: ignore[arg-type]
        return y[:, 0].numel() * self.weight[1:].numel() * self.groups


TINY = Layer(torch.Size((1, 1, 3, 3)), torch.Size((1, 1, 3, 3)), (1, 1), (1, 1), (1, 1), 1, False, False, False)


@dataclass(frozen=True)
class ConvTiming:
    """Times of the strategies on one layer shape.

    Attributes:
        layers: Names of the layers with this shape.
        shape: The shape.
        clients: Number of clients that were timed.
        milliseconds: {strategy: time of a forward and backward pass}; empty if nothing was timed.
        chosen: The chosen strategy.
    """

    layers: tuple[str, ...]
    shape: Layer
    clients: int
    milliseconds: Mapping[str, float]
    chosen: str


@dataclass(frozen=True)
class ConvChoices:
    """The strategy of every convolution, and the timings of each layer shape."""

    by_layer: dict[str, str]
    timings: tuple[ConvTiming, ...]

    def table(self) -> str:
        """Return the measured times, one line per layer shape."""
        lines = []
        for timing in self.timings:
            shape = timing.shape
            size = "x".join(map(str, shape.x)) + " * " + "x".join(map(str, shape.weight))
            times = " ".join(f"{name} {value:.2f} ms" for name, value in timing.milliseconds.items())
            first, more = timing.layers[0], len(timing.layers) - 1
            name = f"{first} (+{more} alike)" if more else first
            lines.append(f"{name:<28} {timing.clients} x {size:<34} {times or 'not timed'} -> {timing.chosen}")
        return "\n".join(lines)


def conv_choices(
    problem: LocalProblem, batch: int, clients: int, requested: Strategies = "auto", seconds: float = 5.0
) -> ConvChoices:
    """Choose the fastest strategy of every convolution; each layer shape is timed once per machine.

    Under torch.use_deterministic_algorithms nothing is timed, because strategies round differently.

    Args:
        problem: The local step.
        batch: Samples per client and step.
        clients: Clients of a chunk.
        requested: Strategies of the user; only layers with "auto" are timed.
        seconds: Time after which no further shape is timed; the remaining strategies depend on the size.
    """
    layers = convolutions(problem.module)
    by_layer = {name: requested if isinstance(requested, str) else requested.get(name, "auto") for name in layers}
    open_layers = {name for name, strategy in by_layer.items() if strategy == "auto"}
    if not open_layers:
        return ConvChoices(by_layer, ())
    shapes: dict[Layer, list[str]] = {}
    for name, shape in called_layers(problem, batch).items():
        if name in open_layers:
            shapes.setdefault(shape, []).append(name)
    bench = _Bench(clients, problem.numerics.device, problem.numerics.autocast_dtype or problem.numerics.dtype, seconds)
    timings = []
    for shape, names in shapes.items():
        timings.append(ConvTiming(tuple(names), shape, *bench.result(shape)))
        by_layer |= dict.fromkeys(names, timings[-1].chosen)
    return ConvChoices(by_layer, tuple(timings))


def called_layers(problem: LocalProblem, batch: int) -> dict[str, Layer]:
    """Record the first call of each convolution in a forward pass of a few samples, scaled to `batch` samples."""
    module = copy.deepcopy(problem.module)
    inputs = problem.source.read_range(0, SAMPLES).inputs
    recorded: dict[str, Layer] = {}

    def record(name: str) -> Callable[[nn.Conv2d, tuple[Tensor, ...]], None]:
        def hook(part: nn.Conv2d, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            if name not in recorded and x.dim() == 4:
                recorded[name] = Layer(
                    x=torch.Size((max(1, x.shape[0] * batch // len(inputs)), *x.shape[1:])),
                    weight=part.weight.shape,
                    stride=part.stride,
                    padding=part.padding if isinstance(part.padding, str) else tuple(part.padding),
                    dilation=part.dilation,
                    groups=part.groups,
                    bias=part.bias is not None,
                    channels_last=x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous(),
                    leads=not x.requires_grad,
                )

        return hook

    for name, part in convolutions(module).items():
        part.register_forward_pre_hook(record(name))
    devices = [problem.numerics.device] if problem.numerics.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), problem.numerics.autocast():
        module(inputs)
    return recorded


class _Bench:
    """Time layer shapes that are not cached, for chunks of `clients` clients and about `seconds` seconds."""

    def __init__(self, clients: int, device: torch.device, dtype: torch.dtype, seconds: float) -> None:
        self.clients, self.device, self.dtype, self.seconds = clients, device, dtype, seconds
        self._path = cache_file("convolutions.json")
        self._deadline: float | None = None

    def result(self, layer: Layer) -> tuple[int, dict[str, float], str]:
        """Return the timed clients, {strategy: milliseconds} and the fastest; chosen by size if no time is left."""
        clients = min(self.clients, max(2, int(FLOPS[self.device.type] / _flops(layer))))
        by_size: tuple[int, dict[str, float], str] = clients, {}, _by_size(layer, self.device, self.dtype)
        if not self.seconds > 0 or torch.are_deterministic_algorithms_enabled():
            return by_size
        key = key_of(
            machine_name(self.device),
            [repr(layer), clients, str(self.dtype), torch.get_num_threads(), allows_tf32()],
        )
        cached = disk_cache.get(self._path, key)
        if isinstance(cached, dict) and cached and set(cached) <= set(_candidates(self.device, self.dtype)):
            if all(isinstance(value, float) for value in cached.values()):
                return clients, cached, _fastest(cached)
        if self._deadline is None:
            self._times(TINY, 1)  # load torch's libraries before the first shape is timed
            self._deadline = time.perf_counter() + self.seconds
        if time.perf_counter() > self._deadline:
            return by_size
        times = self._times(layer, clients)
        if not times:
            return by_size
        disk_cache.put(self._path, key, times)
        return clients, times, _fastest(times)

    def _times(self, layer: Layer, clients: int) -> dict[str, float]:
        draw = functools.partial(torch.randn, device=self.device, dtype=self.dtype)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            x, weight = draw(clients, *layer.x), draw(clients, *layer.weight).requires_grad_()
            bias = draw(clients, layer.weight[0]).requires_grad_() if layer.bias else None
            if layer.channels_last:
                x = x.movedim(2, -1).contiguous().movedim(-1, 2)
        x.requires_grad_(not layer.leads)
        times: dict[str, float] = {}
        for strategy in _candidates(self.device, self.dtype):
            try:
                times[strategy] = _milliseconds(strategy, layer, x, weight, bias, times)
            except kernels.failures() as error:  # out of memory, or an unsupported shape
                if kernels.is_device_fault(error):
                    raise
        return times


def _fastest(times: Mapping[str, float]) -> str:
    return min(times, key=lambda name: times[name])


def _by_size(layer: Layer, device: torch.device, dtype: torch.dtype) -> str:
    """Return the strategy that the operator chooses for "auto" without timing."""
    padding = layer.padding
    if isinstance(padding, str):
        same = [step * (size - 1) // 2 for step, size in zip(layer.dilation, layer.weight[2:], strict=True)]
        padding = tuple(same) if padding == "same" else (0, 0)
    one = torch.empty(1, device=device, dtype=dtype)
    geometry = Geometry.from_sequences(layer.stride, padding, layer.dilation, layer.groups)
    return choose(one.expand(1, *layer.x), one.expand(1, *layer.weight), geometry)


def _flops(layer: Layer) -> int:
    """Return the floating-point operations of one client's forward pass."""
    return 2 * layer.columns // layer.groups * layer.weight[0]


def _candidates(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    in_torch = ("grouped", "loop", "im2col")
    return ("triton", *in_torch) if takes_triton(device, dtype) else in_torch


def _milliseconds(
    strategy: str, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, others: Mapping[str, float]
) -> float:
    """Return the shortest of several forward and backward passes; fewer if the strategy is far behind the `others`."""

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        window = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return functional.conv2d(x, weight, bias, *window, strategy=strategy)

    stacked = vmap(conv, (0, 0, None if bias is None else 0))
    leaves = [value for value in (x, weight, bias) if value is not None and value.requires_grad]

    def step() -> float:
        _wait(x.device)
        start = time.perf_counter()
        y = stacked(x, weight, bias)
        torch.autograd.grad(y, leaves, torch.ones_like(y))
        _wait(x.device)
        return 1e3 * (time.perf_counter() - start)

    warm_up = step()  # compiles, tunes and allocates
    if warm_up > MAX_WARMUP_RATIO * min(others.values(), default=warm_up):
        return warm_up
    best, spent = step(), 0.0
    while best <= MAX_TIME_RATIO * min(others.values(), default=best) and spent < 20.0:
        elapsed = step()
        best, spent = min(best, elapsed), spent + elapsed
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
