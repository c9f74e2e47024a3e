"""What it takes for a kernel to pass.

The reference runs in float64. A kernel's error is at most twice that of the reference in the kernel's own dtype, plus
the stated tolerance; whole numbers are equal. Memory that nobody wrote is NaN, and every tensor lies between guard
bands that stay as they were; so do the arguments that the op does not change. It needs torch and triton alone, as it is
also what benches ask before they time a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from fastlocal.kernels.case import Case, Inputs
from tests.kernels.races import no_races

Op = Callable[..., Any]

TOLERANCES = {
    "exact": 0.0,
    "fp64": 1e-13,
    "fp32": 1e-6,
    "fp32 sum": 1e-5,
    "fp16": 1e-3,
    "bf16": 4e-3,
    "bf16 sum": 2e-2,
    "tf32": 2e-3,
}
"""What is added to twice the error of plain torch, as a fraction of the largest magnitude in the exact result."""

GUARD_BYTES = 512

_full = torch.full  # the name in torch is taken over while an op runs


class Fences:
    """Tensors between guard bands of NaN (whole numbers: of the largest value)."""

    def __init__(self) -> None:
        self._fenced: list[tuple[str, Tensor, Tensor, Tensor, bool]] = []

    def build(self, name: str, like: Tensor, *, values: bool, frozen: bool = False) -> Tensor:
        """A tensor of the same shape, strides and dtype amid a larger buffer, with the same values or poisoned.

        frozen: the values must not change either
        """
        if like.numel() == 0:
            return like.clone()
        span = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
        guard = GUARD_BYTES // like.element_size()
        size = span + 2 * guard
        buffer = _full((size,), poison(like.dtype), dtype=like.dtype, device=like.device)
        view = buffer.as_strided(like.shape, like.stride(), guard)
        if values:
            view.copy_(like)
        self._fenced.append((name, view, buffer, buffer.clone(), frozen))
        return view

    def check(self) -> None:
        for name, view, buffer, before, frozen in self._fenced:
            after = buffer.clone()
            if not frozen:
                spot = (view.shape, view.stride(), view.storage_offset())
                after.as_strided(*spot).copy_(before.as_strided(*spot))
            changed = (bits(after) != bits(before)).nonzero().flatten()
            if len(changed):
                first = int(changed[0]) // view.element_size() - view.storage_offset()
                raise AssertionError(f"stray writes in or around {name}: first at element {first}")


def poison(dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).max


def bits(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


@contextmanager
def fenced_allocations(fences: Fences) -> Iterator[None]:
    """Fences around what an op allocates in Python, poisoned where it asks for memory as it is."""

    def fenced(make: Callable[..., Tensor], values: bool) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            like = make(*args, **kwargs)
            if like.requires_grad or like.device.type == "meta":
                return like
            return fences.build(f"a tensor {tuple(like.shape)} of its own", like, values=values)

        return made

    with ExitStack() as stack:
        for kind, values in (("empty", False), ("zeros", True), ("full", True)):
            for owner, name in ((torch, kind), (torch, f"{kind}_like"), (Tensor, f"new_{kind}")):
                stack.enter_context(patch.object(owner, name, fenced(getattr(owner, name), values)))
        stack.enter_context(patch.object(torch, "empty_strided", fenced(torch.empty_strided, False)))
        yield


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty gives NaN, also where it is called from C++."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def check(case: Case, kernel: Op, reference: Op, device: torch.device | str = "cpu") -> None:
    """Raise AssertionError, with the output and the size of its error, where the kernel does not pass."""
    inputs = case.make_inputs(torch.device(device))
    exact = results(case, reference, {name: in_float64(value) for name, value in inputs.items()})
    plain = results(case, reference, {name: clone(value) for name, value in inputs.items()})
    got = guarded_results(case, kernel, inputs)
    assert got.keys() == plain.keys(), f"results {sorted(got)} instead of {sorted(plain)}"
    for name, value in got.items():
        compare(name, value, plain[name], exact[name], TOLERANCES[case.tolerance])
    if case.deterministic and torch.device(device).type == "cuda":
        again = guarded_results(case, kernel, inputs)
        for name, value in got.items():
            assert torch.equal(bits(value), bits(again[name])), f"{name} differs from run to run"


def guarded_results(case: Case, kernel: Op, inputs: Inputs) -> dict[str, Tensor]:
    fences = Fences()
    fenced = {
        name: fences.build(name, value, values=True, frozen=name not in case.changed + case.scratch)
        if isinstance(value, Tensor)
        else value
        for name, value in inputs.items()
    }
    with poisoned_memory(), no_races(), fenced_allocations(fences):
        out = results(case, kernel, fenced)
    fences.check()
    return out


def results(case: Case, op: Op, inputs: Inputs) -> dict[str, Tensor]:
    """Everything that the op returns or changes, and the gradients of one fixed weighting of what it returns."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in case.differentiated}
    returned = op(**{**inputs, **leaves})
    parts = returned if isinstance(returned, tuple | list) else () if returned is None else (returned,)
    out = {f"output {index}": part for index, part in enumerate(parts) if part is not None}
    if leaves:
        floating = [part for part in out.values() if part.is_floating_point() and part.requires_grad]
        gradients = torch.autograd.grad(floating, list(leaves.values()), [cotangent(part) for part in floating])
        out |= {f"gradient of {name}": grad for name, grad in zip(leaves, gradients, strict=True)}
    out |= {name: inputs[name] for name in case.changed if inputs[name] is not None}
    return {name: part.detach() for name, part in out.items()}


def cotangent(output: Tensor) -> Tensor:
    """Weights in (0, 1) that differ from element to element, exact in every dtype."""
    numbers = torch.arange(output.numel(), device=output.device)
    return ((numbers * 37 % 61 + 1) / 64).to(output.dtype).view(output.shape)


def compare(name: str, got: Tensor, plain: Tensor, exact: Tensor, tolerance: float) -> None:
    assert got.shape == plain.shape, f"{name} has shape {tuple(got.shape)} instead of {tuple(plain.shape)}"
    assert got.dtype == plain.dtype, f"{name} is {got.dtype} instead of {plain.dtype}"
    if got.numel() == 0:
        return
    if not got.is_floating_point():
        assert torch.equal(got, exact.to(got.dtype)), f"{name}: {int((got != exact).sum())} elements differ"
        return
    exact = exact.double()
    assert exact.isfinite().all(), f"{name}: the reference is not finite"
    error, own = float((got.double() - exact).abs().max()), float((plain.double() - exact).abs().max())
    bound = 2 * own + tolerance * float(exact.abs().max())
    # NaN is not at most anything
    assert error <= bound, f"{name}: error {error:.3g}, of plain torch {own:.3g}, allowed {bound:.3g}"


def in_float64(value: Any) -> Any:
    if isinstance(value, Tensor):
        return clone(value).double() if value.is_floating_point() else clone(value)
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def clone(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
