"""Launches, bytes and host reads of a program on CUDA tensors that hold no values, counted without a GPU.

torch's FakeTensorMode knows shapes, dtypes and layouts of tensors on a device that is not there. Under `counting`, the
launchers of the Triton kernels run too, and their launches are noted instead of made.

Rules: an operation is one launch; it reads each input once and writes each output once, also where a cache would hold
the values or a tile would read them twice. Views and allocations are none. An axis of stride 0 is one element.
"""

from __future__ import annotations

import copy
import ctypes
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import profiler
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastlocal import kernels
from fastlocal.common.disk_cache import cache_file
from fastlocal.kernels.deferred import Deferred, Norm
from fastlocal.kernels.light_ops import FUNCTIONS
from fastlocal.telemetry.trace import PREFIX
from tests.rehearsal.cuda_api import build_hooks

FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
FREE |= {"detach", "alias", "lift_fresh", "_unsafe_view"}
"""Operations without a launch, besides views."""
HOST_READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique2", "unique_dim"}
"""Operations whose result, or its size, the host waits for."""
OVERWRITTEN = {"copy_": 0, "fill_": 0, "zero_": 0, "index_copy_": 0}
"""Operations that write an argument without reading it, and its place."""
GATHERED = {"index_select", "index", "gather", "embedding"}
"""Operations that read as much of their first argument as they return."""

WRITTEN = {
    "_apply_kernel": ("y_ptr", "mean_ptr", "rstd_ptr"),
    "_statistics_kernel": ("means_ptr", "squares_ptr"),
    "_combine_kernel": ("mean_ptr", "rstd_ptr"),
    "_backward_kernel": ("sums_ptr", "dx_ptr", "dresidual_ptr"),
    "_forward_kernel": ("y_ptr", "means_ptr", "squares_ptr"),
    "_input_grad_kernel": ("dx_ptr",),
    "_weight_grad_kernel": ("partial_ptr",),
    "_label_noise_loss": ("losses_ptr", "correct_ptr", "grad_ptr"),
    "_gather_augment": ("out_ptr",),
    "_client_sgd": ("shadow_ptr",),
    "_client_adamw": ("shadow_ptr",),
    "_client_adamw_factors": ("factors_ptr",),
}
"""Arguments that a Triton kernel writes without reading them."""
UPDATED = {
    "_client_sgd": ("params_ptr", "momentum_ptr"),
    "_client_adamw": ("params_ptr", "momentum_ptr", "square_ptr"),
    "_client_adamw_factors": ("steps_ptr",),
}
"""Arguments that a Triton kernel reads and writes."""


@dataclass
class Tally:
    """Launches, bytes read and bytes written."""

    launches: int = 0
    read: int = 0
    written: int = 0

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return self.read + self.written

    def add(self, read: int, written: int) -> None:
        """Add one launch."""
        self.launches += 1
        self.read += read
        self.written += written


@dataclass
class Counts:
    """Counts of a program.

    Attributes:
        operations: Tally by (span, operation), in order of the first call; the span is "" outside any.
        saved: Bytes that autograd saves for the backward pass, by storage.
        host_reads: Operations that the host waits for.
        convolved: Bytes of the outputs of all convolutions.
        active: Whether anything is counted now.
        last: Whether the images of each launch of a convolution or norm are channels-last.
        fused: Number of norms by what one launch computes with them.
    """

    operations: dict[tuple[str, str], Tally] = field(default_factory=dict)
    saved: dict[int, int] = field(default_factory=dict)
    host_reads: int = 0
    convolved: int = 0
    active: bool = False
    last: list[tuple[str, bool]] = field(default_factory=list)
    fused: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> Tally:
        """Sum over all operations."""
        found = self.operations.values()
        return Tally(*(sum(getattr(one, name) for one in found) for name in ("launches", "read", "written")))

    @property
    def saved_bytes(self) -> int:
        """Bytes that autograd saves."""
        return sum(self.saved.values())

    def kind(self, name: str) -> Tally:
        """Sum of an operation over all spans."""
        found = [tally for (_, operation), tally in self.operations.items() if operation == name]
        return Tally(*(sum(getattr(one, part) for one in found) for part in ("launches", "read", "written")))


class _Counter(TorchDispatchMode):
    """Notes each operation; custom operators run their own code, whose parts are noted."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts
        self._spans: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name.startswith("profiler::"):
            if "enter" in name:
                self._spans.append(str(args[0]).removeprefix(PREFIX))
            else:
                self._spans.pop()
            return func(*args, **kwargs)
        if func.namespace == "prim":  # an attribute of a tensor
            return func(*args, **kwargs)
        if func.namespace == "fastlocal":
            with self:
                return (FUNCTIONS.get(name) or OPDEFS[name]._init_fn)(*args, **kwargs)
        known = torch._C._dispatch_has_kernel_for_dispatch_key
        if known(func.name(), "CompositeImplicitAutograd") and not known(func.name(), "CUDA"):
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        self._note(func, name.removeprefix("aten::"), args, kwargs, result)
        return result

    def launch(self, name: str, arguments: dict[str, Any]) -> None:
        """Note the launch of a Triton kernel."""
        given = {key: value for key, value in arguments.items() if isinstance(value, Tensor)}
        images = [given[key] for key in ("x_ptr", "grad_ptr", "residual_ptr", "y_ptr") if key in given]
        if any(image.dim() >= 4 for image in images):
            self.counts.last.append((name, all(image.stride(2) == 1 for image in images)))
        if name == "_forward_kernel":
            self.counts.convolved += _bytes(given["y_ptr"])
        written = [given[key] for key in (*WRITTEN.get(name, ()), *UPDATED.get(name, ())) if key in given]
        read = [value for key, value in given.items() if key not in WRITTEN.get(name, ())]
        if name == "_gather_augment":  # of all images those of the batch, a byte for each value
            read = [value for value in read if value is not given["images_ptr"]]
            self._tally(name).add(sum(map(_bytes, read)) + given["out_ptr"].numel(), sum(map(_bytes, written)))
            return
        self._tally(name).add(sum(map(_bytes, read)), sum(map(_bytes, written)))

    def _note(self, func: Any, name: str, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        bare = name.rstrip("_") or name
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if name in HOST_READS or bare in ("copy", "_to_copy") and _leaves_device(inputs, outputs):
            self.counts.host_reads += 1
        if name in FREE or func.is_view or not any(one.device.type == "cuda" for one in (*inputs, *outputs)):
            return
        if name in OVERWRITTEN:
            target = inputs[OVERWRITTEN[name]]
            if name == "index_copy_":  # writes as much as it copies
                target = inputs[2]
            self._tally(name).add(sum(map(_bytes, inputs[1:])), _bytes(target))
            return
        read = sum(map(_bytes, inputs[1:])) + sum(map(_bytes, outputs)) if name in GATHERED else None
        self._tally(name).add(sum(map(_bytes, inputs)) if read is None else read, sum(map(_bytes, outputs)))

    def _tally(self, name: str) -> Tally:
        return self.counts.operations.setdefault((self._spans[-1] if self._spans else "", name), Tally())


def _bytes(tensor: Tensor) -> int:
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride else min(size, 1)
    return elements * tensor.element_size()


def _leaves_device(inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    return inputs[-1].device.type == "cuda" and outputs[0].device.type == "cpu"


def empty_like_module(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy whose parameters and buffers are on the device and hold no values; within `counting`."""
    memo: dict[int, Any] = {
        id(each): torch.empty(each.shape, dtype=each.dtype, device=device) for each in module.buffers()
    }
    for each in module.parameters():
        memo[id(each)] = nn.Parameter(torch.empty(each.shape, device=device), each.requires_grad)
    return copy.deepcopy(module, memo)


@contextmanager
def counting() -> Iterator[tuple[Counts, Callable[[], Any]]]:
    """Pretend a CUDA device of capability 9.0 whose tensors hold no values, and yield counts and a switch.

    What runs within the context manager that the switch returns is counted.
    """
    from triton.runtime.jit import KernelInterface

    counts = Counts()
    counter = _Counter(counts)

    def launcher(kernel: Any, grid: Any) -> Callable[..., None]:
        inner = kernel
        while hasattr(inner, "fn"):
            inner = inner.fn

        def launch(**arguments: Any) -> None:
            if callable(grid):
                grid(arguments)
            if counter.counts.active:
                counter.launch(inner.__name__, arguments)

        return launch

    def note_fused(deferred: Deferred, norm: Norm, activation: str) -> None:
        name = norm.serves(activation)
        if counts.active and name:
            counts.fused[name] += 1

    def note_saved(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        counts.saved[storage._cdata] = storage.nbytes()
        return tensor

    @contextmanager
    def counted() -> Iterator[None]:
        with patch.object(profiler, "_is_profiler_enabled", True), counter:
            with saved_tensors_hooks(note_saved, lambda tensor: tensor), patch.object(counts, "active", True):
                yield

    with ExitStack() as stack:
        hooks = ctypes.CDLL(str(build_hooks(cache_file("native").resolve())))  # autograd asks the device for streams
        hooks.install()
        stack.callback(hooks.uninstall)
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # by copy.deepcopy of a module
        for name, function in {
            "is_available": lambda: True,
            "is_bf16_supported": lambda including_emulation=True: True,
            "get_device_capability": lambda device=None: (9, 0),
            "get_device_name": lambda device=None: "a device that is not there",
            "is_current_stream_capturing": lambda: False,
        }.items():
            stack.enter_context(patch.object(torch.cuda, name, function))
        stack.enter_context(patch.object(fake_tensor, "init_gpu_context", lambda device: None))
        stack.enter_context(patch.object(kernels, "_obstacle", lambda device, *, interpreted: None))
        stack.enter_context(patch.object(KernelInterface, "__getitem__", launcher))
        stack.enter_context(patch.object(Deferred, "count", note_fused))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield counts, counted
