"""The fastest way of each convolution of a stacked module: by timing them on the shapes at hand."""

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
"""Of one forward pass beyond which fewer clients than the chunk's are timed."""
ROWS = 8
HOPELESS, CHECKED_ONCE = 8.0, 1.5
"""A strategy is not timed again where its warm-up, or its first time, is this many times the best's."""


@dataclass(frozen=True)
class Layer:
    """One client's convolution as it is called: what its speed depends on.

    x: shape [batch, in, h, w] of the images        weight: [out, in / groups, kh, kw]
    padding: (height, width) or a word        leads: whether nothing before it is trained, so that its images need no
    gradient
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
        """Numbers that its windows hold together."""
        x, weight = torch.empty(self.x, device="meta"), torch.empty(self.weight, device="meta")
        y = F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)  # type: ignore[arg-type]
        return y[:, 0].numel() * self.weight[1:].numel() * self.groups


TINY = Layer(torch.Size((1, 1, 3, 3)), torch.Size((1, 1, 3, 3)), (1, 1), (1, 1), (1, 1), 1, False, False, False)


@dataclass(frozen=True)
class ConvTiming:
    """milliseconds: of one forward and backward pass of `clients` clients by each strategy; empty where not timed"""

    layers: tuple[str, ...]
    shape: Layer
    clients: int
    milliseconds: Mapping[str, float]
    chosen: str


@dataclass(frozen=True)
class ConvChoices:
    """by_layer: the strategy of every convolution        timings: how it was found, one entry per layer shape"""

    by_layer: dict[str, str]
    timings: tuple[ConvTiming, ...]

    def table(self) -> str:
        """The measured times, one line per layer shape."""
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
    problem: LocalProblem, batch: int, clients: int, given: Strategies = "auto", seconds: float = 5.0
) -> ConvChoices:
    """The fastest strategy of every convolution for chunks of this size, timed once per layer shape and machine.

    given: what is settled already; "auto" is what is timed
    seconds: after which no further shape is timed; those go by their size
    Under torch.use_deterministic_algorithms nothing is timed, as another strategy rounds in another way.
    """
    layers = convolutions(problem.module)
    by_layer = {name: given if isinstance(given, str) else given.get(name, "auto") for name in layers}
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
    """How each convolution is called in one client's step, by one forward pass of a few samples."""
    module = copy.deepcopy(problem.module)
    inputs = problem.source.read_range(0, ROWS).inputs
    found: dict[str, Layer] = {}

    def note(name: str) -> Callable[[nn.Conv2d, tuple[Tensor, ...]], None]:
        def hook(part: nn.Conv2d, given: tuple[Tensor, ...]) -> None:
            x = given[0]
            if name not in found and x.dim() == 4:
                found[name] = Layer(
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
        part.register_forward_pre_hook(note(name))
    devices = [problem.numerics.device] if problem.numerics.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), problem.numerics.autocast():
        module(inputs)
    return found


class _Bench:
    """Times layer shapes for chunks of `clients` for about so many seconds, apart from those that are known."""

    def __init__(self, clients: int, device: torch.device, dtype: torch.dtype, seconds: float) -> None:
        self.clients, self.device, self.dtype, self.seconds = clients, device, dtype, seconds
        self._path = cache_file("convolutions.json")
        self._deadline: float | None = None

    def result(self, layer: Layer) -> tuple[int, dict[str, float], str]:
        """Clients timed, milliseconds by strategy, and the fastest; by size where there is no time left."""
        here = min(self.clients, max(2, int(FLOPS[self.device.type] / _flops(layer))))
        by_size: tuple[int, dict[str, float], str] = here, {}, _by_size(layer, self.device, self.dtype)
        if not self.seconds > 0 or torch.are_deterministic_algorithms_enabled():
            return by_size
        key = key_of(
            machine_name(self.device),
            [repr(layer), here, str(self.dtype), torch.get_num_threads(), allows_tf32()],
        )
        known = disk_cache.get(self._path, key)
        if isinstance(known, dict) and known and set(known) <= set(_candidates(self.device, self.dtype)):
            if all(isinstance(value, float) for value in known.values()):
                return here, known, _fastest(known)
        if self._deadline is None:
            self._times(TINY, 1)  # what torch loads at a first call is no shape's fault
            self._deadline = time.perf_counter() + self.seconds
        if time.perf_counter() > self._deadline:
            return by_size
        times = self._times(layer, here)
        if not times:
            return by_size
        disk_cache.put(self._path, key, times)
        return here, times, _fastest(times)

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
            except kernels.failures() as error:  # too little memory, or shapes that it does not take
                if kernels.is_device_fault(error):
                    raise
        return times


def _fastest(times: Mapping[str, float]) -> str:
    return min(times, key=lambda name: times[name])


def _by_size(layer: Layer, device: torch.device, dtype: torch.dtype) -> str:
    """What "auto" comes to where nothing is timed."""
    padding = layer.padding
    if isinstance(padding, str):
        same = [step * (size - 1) // 2 for step, size in zip(layer.dilation, layer.weight[2:], strict=True)]
        padding = tuple(same) if padding == "same" else (0, 0)
    one = torch.empty(1, device=device, dtype=dtype)
    geometry = Geometry.from_sequences(layer.stride, padding, layer.dilation, layer.groups)
    return choose(one.expand(1, *layer.x), one.expand(1, *layer.weight), geometry)


def _flops(layer: Layer) -> int:
    """Floating-point operations of one client's forward pass."""
    return 2 * layer.columns // layer.groups * layer.weight[0]


def _candidates(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    in_torch = ("grouped", "loop", "im2col")
    return ("triton", *in_torch) if takes_triton(device, dtype) else in_torch


def _milliseconds(
    strategy: str, layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None, others: Mapping[str, float]
) -> float:
    """The shortest of a few passes, forward and backward; one where the first is far from the best of the others."""

    def one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        window = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return functional.conv2d(x, weight, bias, *window, strategy=strategy)

    stacked = vmap(one, (0, 0, None if bias is None else 0))
    wanted = [value for value in (x, weight, bias) if value is not None and value.requires_grad]

    def step() -> float:
        _wait(x.device)
        start = time.perf_counter()
        y = stacked(x, weight, bias)
        torch.autograd.grad(y, wanted, torch.ones_like(y))
        _wait(x.device)
        return 1e3 * (time.perf_counter() - start)

    first = step()  # compiles, tunes and allocates
    if first > HOPELESS * min(others.values(), default=first):
        return first
    best, spent = step(), 0.0
    while best <= CHECKED_ONCE * min(others.values(), default=best) and spent < 20.0:
        took = step()
        best, spent = min(best, took), spent + took
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
