"""Small inputs of every C++ function: sizes around a vector of 16, unaligned rows, every option."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..case import Case, Draws, Inputs
from . import ACTIVATIONS, in_torch

LAST = torch.channels_last
NAN = float("nan")


def _case(name: str, make: object, changed: tuple[str, ...], tolerance: str = "fp32 sum") -> Case:
    assert callable(make)

    def make_inputs(device: torch.device) -> Inputs:
        inputs: Inputs = make(Draws(device))
        return inputs

    return Case(name, make_inputs, tolerance, bytes_moved=0, flops=0, changed=changed)


def _product(samples: int, values: int, outputs: int, bias: bool) -> Case:
    def make(draw: Draws) -> Inputs:
        return {
            "x": draw.normal(samples, values),
            "weight": draw.normal(outputs, values),
            "bias": draw.normal(outputs) if bias else None,
            "y": torch.full((samples, outputs), NAN),
        }

    return _case(f"{samples}x{values} to {outputs}{' bias' if bias else ''}", make, ("y",))


def _product_update(rows: int, columns: int, samples: int, bias: bool, momentum: bool = True) -> Case:
    def make(draw: Draws) -> Inputs:
        return {
            "weight": draw.normal(rows, columns),
            "momentum": draw.normal(rows, columns) if momentum else None,
            "a": draw.normal(samples, rows),
            "b": draw.normal(samples, columns),
            "bias": draw.normal(rows) if bias else None,
            "bias_momentum": draw.normal(rows) if bias and momentum else None,
            "mu": 0.9 if momentum else 0.0,
            "decay": 0.01,
            "bias_decay": 0.1,
            "rate": 0.3,
        }

    parameters = ("weight", "bias") if bias else ("weight",)
    momenta = ("momentum", "bias_momentum")[: len(parameters)] if momentum else ()
    words = f"{rows}x{columns} by {samples}{' bias' if bias else ''}{'' if momentum else ' no momentum'}"
    return _case(words, make, (*parameters, *momenta))


def _sgd_update(*shape: int, last: bool = False) -> Case:
    def make(draw: Draws) -> Inputs:
        grad = draw.normal(*shape)
        return {
            "weight": draw.normal(*shape),
            "momentum": draw.normal(*shape),
            "grad": grad.contiguous(memory_format=LAST) if last else grad,
            "mu": 0.9,
            "decay": 0.01,
            "rate": 0.3,
        }

    return _case("x".join(map(str, shape)) + (" last" if last else ""), make, ("weight", "momentum"), "fp32")


def _cross_entropy(samples: int, classes: int) -> Case:
    def make(draw: Draws) -> Inputs:
        outputs = draw.normal(samples, classes, scale=5.0)
        targets = draw.integers(samples, below=classes)
        return {
            "outputs": outputs,
            "targets": targets,
            "loss": torch.full((), NAN),
            "grad": torch.full_like(outputs, NAN),
            "ignored": -100,
        }

    return _case(f"{samples}x{classes}", make, ("loss", "grad"))


def _images(draw: Draws, shape: tuple[int, ...], dtype: torch.dtype, mean: float = 0.0) -> Tensor:
    return draw.normal(*shape).add_(mean).to(dtype).contiguous(memory_format=LAST)


def _norm(shape: tuple[int, ...], groups: int, kind: str, residual: bool, dtype: torch.dtype, backward: bool) -> Case:
    def make(draw: Draws) -> Inputs:
        x = _images(draw, shape, dtype, mean=3.0)
        units = x.float().unflatten(1, (groups, -1)).flatten(2).flatten(0, 1)
        mean, rstd = units.mean(dim=1), (units.var(dim=1, correction=0) + 1e-5).rsqrt()
        affine = {"weight": draw.normal(shape[1]), "bias": draw.normal(shape[1])}
        added = _images(draw, shape, dtype) if residual else None
        options = {"groups": groups, "activation": ACTIVATIONS[kind]}
        if not backward:
            y, *statistics = (torch.full_like(value, NAN) for value in (x, mean, rstd))
            results: Inputs = {"y": y, "mean": statistics[0], "rstd": statistics[1]}
            return {"x": x, **affine, "residual": added, **results, "eps": 1e-5, **options}
        sums = {"dweight": torch.full((shape[1],), NAN), "dbias": torch.full((shape[1],), NAN)}
        more = torch.full_like(x, NAN) if residual else None
        results = {"dx": torch.full_like(x, NAN), **sums, "dresidual": more}
        inputs = {"grad": _images(draw, shape, dtype), "x": x}
        return {**inputs, **affine, "residual": added, "mean": mean, "rstd": rstd, **results, **options}

    size = "x".join(map(str, shape))
    words = [size, f"{groups} groups", kind, "residual" if residual else "", str(dtype).removeprefix("torch.")]
    forward, back = ("y", "mean", "rstd"), ("dx", "dweight", "dbias", *(("dresidual",) if residual else ()))
    tolerance = "fp32 sum" if dtype == torch.float32 else "bf16"
    return _case(" ".join(filter(None, words)), make, back if backward else forward, tolerance)


def _norms(backward: bool) -> tuple[Case, ...]:
    return (
        _norm((2, 16, 3, 3), 2, "none", False, torch.float32, backward),
        _norm((3, 16, 5, 7), 8, "relu", True, torch.float32, backward),
        _norm((2, 48, 3, 3), 1, "silu", True, torch.float32, backward),
        _norm((1, 32, 1, 4), 32, "silu", False, torch.float32, backward),
        _norm((4, 64, 2, 2), 4, "relu", True, torch.bfloat16, backward),
    )


def _pool(
    shape: tuple[int, ...],
    window: tuple[int, int, int],
    kind: str,
    dtype: torch.dtype,
    backward: bool,
    contiguous: bool = False,
    ceil: bool = False,
) -> Case:
    def make(draw: Draws) -> Inputs:
        kernel, stride, padding = ([size, size] for size in window)
        x = _images(draw, shape, dtype)
        maxima, _ = F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil, return_indices=True)
        layout = torch.contiguous_format if contiguous else LAST
        y, places = torch.full_like(maxima, NAN, memory_format=layout), torch.zeros(maxima.numel(), dtype=torch.uint8)
        options = {"kernel": kernel, "stride": stride, "padding": padding}
        if not backward:
            return {"x": x, "y": y, "places": places, **options, "activation": ACTIVATIONS[kind]}
        grad = draw.normal(*maxima.shape).to(dtype).contiguous(memory_format=layout)
        in_torch.max_pool_act(x, y, places, **options, activation=ACTIVATIONS[kind])
        return {"grad": grad, "places": places, "dx": torch.full_like(x, NAN), **options}

    size, kernel, stride, padding = "x".join(map(str, shape)), *window
    words = f"{size} by {kernel} each {stride} in {padding} {kind}{' contiguous' if contiguous else ''}"
    words += f"{' ceil' if ceil else ''} {str(dtype).removeprefix('torch.')}"
    tolerance = "fp32" if dtype == torch.float32 else "bf16"
    return _case(words, make, ("dx",) if backward else ("y", "places"), tolerance)


def _pools(backward: bool) -> tuple[Case, ...]:
    return (
        _pool((2, 3, 4, 5), (2, 2, 0), "relu", torch.float32, backward, contiguous=True),
        _pool((2, 16, 6, 6), (2, 2, 0), "none", torch.float32, backward),
        _pool((3, 38, 7, 5), (3, 2, 1), "relu", torch.float32, backward),
        _pool((1, 20, 5, 5), (2, 2, 0), "none", torch.float32, backward, ceil=True),
        _pool((2, 33, 4, 6), (3, 2, 1), "relu", torch.bfloat16, backward),
    )


def _module_words(size: int, seed: int) -> Case:
    def make(draw: Draws) -> Inputs:
        client, step = torch.tensor(2**31 + 5), torch.tensor([3])
        words = torch.zeros(size, dtype=torch.int64)
        return {"client": client, "step": step, "purpose": 0x304, "seed": seed, "words": words}

    return _case(f"{size} of seed {seed}", make, ("words",), "fp32")


def _client_sum(clients: int, n_params: int) -> Case:
    def make(draw: Draws) -> Inputs:
        params = draw.padded(draw.normal(clients, n_params), extra=3)
        return {"params": params, "total": draw.normal(n_params, dtype=torch.float64), "weight": 0.25}

    return _case(f"{clients}x{n_params}", make, ("total",), "fp64")


def _gather_images(shape: tuple[int, ...], padding: int | None) -> Case:
    def make(draw: Draws) -> Inputs:
        n, channels = 7, shape[0]
        boxes = draw.integers(3, 5, below=2 * (padding or 0) + 1)
        boxes[2] %= 2
        return {
            "images": draw.integers(n, *shape, below=256).to(torch.uint8),
            "ids": draw.integers(5, below=n),
            "boxes": None if padding is None else boxes,
            "scale": draw.uniform(channels, low=0.01, high=0.02),
            "offset": draw.normal(channels),
            "out": torch.full((5, *shape), NAN),
            "padding": padding or 0,
        }

    size = "x".join(map(str, shape))
    return _case(f"5x{size}" + ("" if padding is None else f" padding {padding}"), make, ("out",), "fp32")


CASES: dict[str, tuple[Case, ...]] = {
    "client_sum": (_client_sum(1, 1), _client_sum(3, 129), _client_sum(2, 5000)),
    "cross_entropy": (_cross_entropy(3, 2), _cross_entropy(16, 10), _cross_entropy(7, 1000)),
    "gather_images": (_gather_images((1, 2, 3), None), _gather_images((3, 5, 7), 2), _gather_images((3, 32, 32), 4)),
    "group_norm_act": _norms(backward=False),
    "group_norm_act_backward": _norms(backward=True),
    "max_pool_act": _pools(backward=False),
    "max_pool_act_backward": _pools(backward=True),
    "module_words": (_module_words(1, 0), _module_words(64, 2**40 + 3), _module_words(131, 2**62 - 1)),
    "product": (_product(8, 3, 2, False), _product(16, 130, 7, True), _product(16, 64, 33, False)),
    "product_update": (
        _product_update(1, 3, 2, True),
        _product_update(7, 130, 5, True),
        _product_update(32, 64, 16, False),
        _product_update(9, 70, 10, True, momentum=False),
    ),
    "sgd_update": (_sgd_update(3), _sgd_update(37), _sgd_update(6, 5, 3, 2, last=True)),
}
"""Cases by function, the smallest first."""
