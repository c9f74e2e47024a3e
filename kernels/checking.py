"""Check of a kernel against its reference.

The reference runs in float64. A kernel's error may be at most twice that of the reference in the kernel's dtype, plus
the stated tolerance; integers must be equal. Unwritten memory is NaN, and every tensor lies between guard bands, which
must stay unchanged, as must the arguments that the op does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from .case import Case, Inputs

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
"""Added to twice the error of plain torch, as a fraction of the largest magnitude of the exact result."""

GUARD_BYTES = 512


class Mismatch(AssertionError):
    """A kernel fails the check.

    Attributes:
        error: Largest difference from the exact result, if that is the fault.
    """

    def __init__(self, text: str, error: float | None = None) -> None:
        super().__init__(text)
        self.error = error


_full = torch.full  # fence_allocations replaces torch.full


class Fences:
    """Tensors between guard bands of NaN (integers: of the largest value)."""

    def __init__(self) -> None:
        self._fenced: list[tuple[str, Tensor, Tensor, Tensor, bool]] = []

    def build(self, name: str, like: Tensor, *, values: bool, frozen: bool = False) -> Tensor:
        """Copy a tensor, with its shape, strides and dtype, into a larger buffer; poison it unless `values`.

        Args:
            name: Name for messages.
            like: The tensor.
            values: Copy the values.
            frozen: The values must not change.
        """
        if like.numel() == 0:
            return like.clone()
        sizes = [1 if stride == 0 else size for size, stride in zip(like.shape, like.stride(), strict=True)]
        if sizes != list(like.shape):  # expanded dimensions share memory
            own = self.build(name, like.as_strided(sizes, like.stride()), values=values, frozen=frozen)
            return own.expand(like.shape)
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
                raise Mismatch(f"stray writes in or around {name}: first at element {first}")


def poison(dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).max


def bits(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


@contextmanager
def fence_allocations(fences: Fences) -> Iterator[None]:
    """Fence what an op allocates in Python; uninitialized memory is poisoned."""

    def with_fence(make: Callable[..., Tensor], values: bool) -> Callable[..., Tensor]:
        def allocate(*args: Any, **kwargs: Any) -> Tensor:
            like = make(*args, **kwargs)
            if like.requires_grad or like.device.type == "meta":
                return like
            return fences.build(f"a tensor {tuple(like.shape)} of its own", like, values=values)

        return allocate

    with ExitStack() as stack:
        for kind, values in (("empty", False), ("zeros", True), ("full", True)):
            for owner, name in ((torch, kind), (torch, f"{kind}_like"), (Tensor, f"new_{kind}")):
                stack.enter_context(patch.object(owner, name, with_fence(getattr(owner, name), values)))
        stack.enter_context(patch.object(torch, "empty_strided", with_fence(torch.empty_strided, False)))
        yield


@contextmanager
def poison_memory() -> Iterator[None]:
    """Fill memory of torch.empty with NaN, also in calls from C++."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # torch.use_deterministic_algorithms calls this, but imports torch._inductor first: 3 s
    torch._C._set_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch._C._set_deterministic_algorithms(before[0], warn_only=before[1])


def check(
    case: Case,
    kernel: Op,
    reference: Op,
    device: torch.device | str = "cpu",
    *,
    guarded: bool = True,
    twice: bool = False,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Compare a kernel with its reference; raises Mismatch with the output and the size of its error.

    Args:
        case: Inputs and tolerance.
        kernel: The function to check.
        reference: The same function in plain torch.
        device: Device of both.
        guarded: Poison memory and use guard bands. This makes torch's algorithms deterministic, so that an autotuned
            kernel takes its first tile. Otherwise the kernel runs as in training.
        twice: Also compare the bits of two runs, if the case is deterministic.
        within: Context in which the guarded kernel runs.
    """
    inputs = case.make_inputs(torch.device(device))
    exact = results(case, reference, {name: in_float64(value) for name, value in inputs.items()})
    plain = results(case, reference, {name: clone(value) for name, value in inputs.items()})

    def run() -> dict[str, Tensor]:
        if guarded:
            return guarded_results(case, kernel, inputs, within)
        return results(case, kernel, {name: clone(value) for name, value in inputs.items()})

    got = run()
    if got.keys() != plain.keys():
        raise Mismatch(f"results {sorted(got)} instead of {sorted(plain)}")
    for name, value in got.items():
        compare(name, value, plain[name], exact[name], TOLERANCES[case.tolerance])
    if case.deterministic and (twice or torch.device(device).type == "cuda"):
        again = run()
        for name, value in got.items():
            if not torch.equal(bits(value), bits(again[name])):
                raise Mismatch(f"{name} differs from run to run")


def guarded_results(
    case: Case, kernel: Op, inputs: Inputs, within: Callable[[], AbstractContextManager[None]] = nullcontext
) -> dict[str, Tensor]:
    """Return `results` with poisoned memory and guard bands, which are checked."""
    fences = Fences()
    fenced = {
        name: fences.build(name, value, values=True, frozen=name not in case.changed + case.scratch)
        if isinstance(value, Tensor)
        else value
        for name, value in inputs.items()
    }
    with poison_memory(), within(), fence_allocations(fences):
        out = results(case, kernel, fenced)
    fences.check()
    return out


def results(case: Case, op: Op, inputs: Inputs) -> dict[str, Tensor]:
    """Return all outputs and changed arguments, and the gradients of a fixed weighting of the outputs."""
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
    """Return weights in (0, 1) that differ between elements, exact in every dtype."""
    numbers = torch.arange(output.numel(), device=output.device)
    return ((numbers * 37 % 61 + 1) / 64).to(output.dtype).view(output.shape)


def compare(name: str, got: Tensor, plain: Tensor, exact: Tensor, tolerance: float) -> None:
    """Raise Mismatch if a result has another kind than plain torch's, or is too far from the exact one."""
    if got.shape != plain.shape:
        raise Mismatch(f"{name} has shape {tuple(got.shape)} instead of {tuple(plain.shape)}")
    if got.dtype != plain.dtype:
        raise Mismatch(f"{name} is {got.dtype} instead of {plain.dtype}")
    if got.numel() == 0:
        return
    if not got.is_floating_point():
        if not torch.equal(got, exact.to(got.dtype)):
            raise Mismatch(f"{name}: {int((got != exact).sum())} elements differ")
        return
    exact = exact.double()
    if not exact.isfinite().all():
        raise Mismatch(f"{name}: the reference is not finite")
    error, own = float((got.double() - exact).abs().max()), float((plain.double() - exact).abs().max())
    bound = 2 * own + tolerance * float(exact.abs().max())
    if not error <= bound:  # also fails for NaN
        raise Mismatch(f"{name}: error {error:.3g}, of plain torch {own:.3g}, allowed {bound:.3g}", error)


def in_float64(value: Any) -> Any:
    if isinstance(value, Tensor):
        return clone(value).double() if value.is_floating_point() else clone(value)
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def clone(value: Any) -> Any:
    """Copy a tensor in its memory layout, including row padding and shared elements."""
    if not isinstance(value, Tensor):
        return value
    if value.is_contiguous() or value.numel() == 0:
        return value.clone()
    sizes = [1 if stride == 0 else size for size, stride in zip(value.shape, value.stride(), strict=True)]
    out = torch.empty_strided(sizes, value.stride(), dtype=value.dtype, device=value.device)
    return out.copy_(value.as_strided(sizes, value.stride())).expand(value.shape)
