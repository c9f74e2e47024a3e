"""Addresses beyond 2^31 elements, from strides that are made huge: nothing of that size is allocated.

Triton's interpreter computes addresses in the integers that a GPU would use. Here its loads and stores touch nothing,
and the addresses that they were given are compared with those of the tensors' elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from fastlocal import kernels
from fastlocal.kernels.conv2d_clients.geometry import Geometry
from fastlocal.kernels.norm_act import triton_kernel as norm_act_kernel
from fastlocal.kernels.norm_act_backward import triton_kernel as norm_act_backward_kernel

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter")

AXES = {2: ("client",), 4: ("client", "batch", "channel", "pixel"), 5: ("client", "batch", "channel", "h", "w")}
AXES[6] = ("split", "client")
STRIDES = {
    "split": 2**29 + 90_000_049,
    "client": 2**29 + 70_000_003,
    "group": 2**29 + 60_000_013,
    "batch": 2**29 + 5_000_011,
    "channel": 2**29 + 600_043,
    "pixel": 2**29 + 70_001,
    "h": 2**29 + 8_009,
    "w": 2**29 + 13,
}
"""Each fits into int32; four times any of them does not, nor do sums of four."""


def elements(name: str, tensor: Tensor, arguments: dict[str, Any]) -> np.ndarray:
    """Addresses of a tensor's elements, with the strides that the kernel was given for it, dense where with none."""
    name = {"dresidual": "dx"}.get(name, name)
    offsets = np.zeros(1, np.int64)
    if f"{name}_stride_client" in arguments:
        for index, size in enumerate(tensor.shape):
            axes = AXES[tensor.dim()]
            step = arguments[f"{name}_stride_{axes[index]}"] if index < len(axes) else tensor.shape[index + 1 :].numel()
            offsets = np.add.outer(offsets, np.arange(size) * step).ravel()
    else:
        offsets = np.arange(tensor.numel())
    return tensor.data_ptr() + offsets * tensor.element_size()


class Addresses:
    """Of every launch, with huge strides: what was loaded and stored."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.used: set[int] = set()
        self.known: dict[str, set[int]] = {}
        self.launches = 0
        launch = interpreter.GridExecutor.__call__

        def huge(executor: Any, *args: Any, **arguments: Any) -> None:
            for key, step in arguments.items():
                if "_stride_" in key and step:
                    arguments[key] = STRIDES[key.partition("_stride_")[2]]
            self.launches += 1
            for key, tensor in arguments.items():
                if isinstance(tensor, Tensor):
                    name = key.removesuffix("_ptr")
                    self.known.setdefault(name, set()).update(elements(name, tensor, arguments).tolist())
            launch(executor, *args, **arguments)

        def load(builder: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
            self.used.update(pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].tolist())
            dtype = pointers.get_element_ty()
            return interpreter.TensorHandle(np.ones(pointers.data.shape, interpreter._get_np_dtype(dtype)), dtype)

        def store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> None:
            self.used.update(pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].tolist())

        patch.setattr(interpreter.GridExecutor, "__call__", huge)
        patch.setattr(interpreter.InterpreterBuilder, "create_masked_load", load)
        patch.setattr(interpreter.InterpreterBuilder, "create_masked_store", store)

    def check(self) -> None:
        """Every element was used and nothing else."""
        for name, own in self.known.items():
            assert own <= self.used, f"{len(own - self.used)} elements of {name} were never used"
        assert self.used <= set().union(*self.known.values())


def convolution(op: str) -> Callable[[], Any]:
    geometry = Geometry(stride=(2, 1), padding=(1, 1))
    x, weight = torch.ones(5, 5, 5, 5, 5), torch.ones(5, 5, 5, 3, 3)
    rest = {} if op == "conv2d_clients" else {"grad": torch.ones(5, 5, 5, 3, 5)}
    return lambda: kernels.get(op, "triton", "cpu")(x=x, weight=weight, geometry=geometry, **rest)


def norm(op: str, groups: int) -> Callable[[], Any]:
    x, residual, grad = torch.ones(5, 5, 6, 2, 3), torch.ones(5, 5, 6, 2, 3), torch.ones(5, 5, 6, 2, 3)
    affine = {"weight": torch.ones(5, 6), "bias": torch.ones(5, 6)}
    rest: dict[str, Any] = {}
    if op == "norm_act_backward":
        statistics = torch.ones(5, 5, groups) if groups else torch.ones(5, 1, 6)
        rest = {"grad": grad, "mean": statistics, "rstd": statistics.clone()}
    function = kernels.get(op, "triton", "cpu")
    return lambda: function(x=x, residual=residual, groups=groups, activation="silu", **affine, **rest)


@pytest.mark.parametrize("op", ["conv2d_clients", "conv2d_clients_input_grad", "conv2d_clients_weight_grad"])
def test_convolution(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = convolution(op)
    addresses = Addresses(monkeypatch)
    run()
    addresses.check()
    assert addresses.launches == 1


@pytest.mark.parametrize("op", ["norm_act", "norm_act_backward"])
@pytest.mark.parametrize("groups", [2, 0])
@pytest.mark.parametrize("resident", [True, False])
def test_norm(op: str, groups: int, resident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not resident:
        monkeypatch.setattr(norm_act_kernel, "ELEMENTS", 16)
        monkeypatch.setattr(norm_act_backward_kernel, "ELEMENTS", 16)
    run = norm(op, groups)
    addresses = Addresses(monkeypatch)
    run()
    addresses.check()
    assert addresses.launches == (1 if resident else 3 if op == "norm_act" else 2)
