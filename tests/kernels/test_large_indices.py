"""Addresses beyond 2^31 elements that follow from indices: of a sample in the data set, of a program in a huge launch.

As in test_large_offsets.py nothing of that size exists: programs are told that they come late in their launch, loads
and stores touch nothing, and the addresses that they were given are compared with those that are meant.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from fastlocal import kernels

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter")

FIRST = 2**28 + 5
"""What programs are numbered from: it fits into int32, and its products with the sizes below do not."""

LARGE = 2**29 + 11
"""What every whole number in memory is: a sample, a client, a step."""


class Launch:
    """The arguments of one launch, with some of them changed, and every address that its programs used."""

    def __init__(self, patch: pytest.MonkeyPatch, **changed: int) -> None:
        self.used: set[int] = set()
        self.arguments: dict[str, Any] = {}
        launch = interpreter.GridExecutor.__call__

        def noted(executor: Any, *args: Any, **arguments: Any) -> None:
            self.arguments = {**arguments, **changed}
            launch(executor, *args, **self.arguments)

        def program(builder: Any, axis: int) -> Any:
            number = np.array([builder.grid_idx[axis] + FIRST], dtype=np.int32)
            return interpreter.TensorHandle(number, tl.int32)

        def load(builder: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
            self.used.update(pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].tolist())
            dtype = pointers.get_element_ty()
            value = LARGE if dtype == tl.int64 else 1
            values = np.full(pointers.data.shape, value, interpreter._get_np_dtype(dtype))
            return interpreter.TensorHandle(values, dtype)

        def store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> None:
            self.used.update(pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].tolist())

        patch.setattr(interpreter.GridExecutor, "__call__", noted)
        patch.setattr(interpreter.InterpreterBuilder, "create_get_program_id", program)
        patch.setattr(interpreter.InterpreterBuilder, "create_masked_load", load)
        patch.setattr(interpreter.InterpreterBuilder, "create_masked_store", store)

    def addresses(self, name: str, offsets: np.ndarray) -> set[int]:
        """Of the elements of an argument that lie so many elements from its start."""
        tensor = self.arguments[f"{name}_ptr"]
        found: set[int] = (tensor.data_ptr() + offsets.ravel() * tensor.element_size()).tolist()
        return set(found)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("augment", [False, True])
def test_gather_augment(augment: bool, channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clients, batch, size = 2, 3, 2 * 5 * 7
    launch = Launch(monkeypatch)
    kernels.get("gather_augment", "triton", "cpu")(
        torch.zeros(1, 2, 5, 7, dtype=torch.uint8),
        torch.zeros(clients, batch, dtype=torch.int64),
        torch.arange(clients) if augment else None,
        0,
        seed=torch.arange(clients),
        padding=1,
        mean=(0.5, 0.5),
        std=(0.5, 0.5),
        dtype=torch.float32,
        channels_last=channels_last,
    )
    image = FIRST + np.arange(clients * batch, dtype=np.int64)
    inside = np.arange(size)
    expected = launch.addresses("out", image[:, None] * size + inside) | launch.addresses("sample_ids", image)
    if augment:
        expected |= launch.addresses("clients", image // batch) | launch.addresses("step", np.zeros(1, np.int64))
        expected |= launch.addresses("seed", image // batch)
    source = launch.addresses("images", LARGE * size + inside)
    assert expected <= launch.used <= expected | source
    read = len(launch.used & source)
    # six crops, shifted by at most one pixel, leave no pixel of the inner ones unread
    assert read == size or augment and read >= 2 * 3 * 5


@pytest.mark.parametrize("p", [0.0, 0.5, torch.ones(2)])
def test_label_noise_loss(p: Tensor | float, monkeypatch: pytest.MonkeyPatch) -> None:
    count, batch, classes, step = 2, 3, 17, 2**30 + 1
    launch = Launch(monkeypatch, logits_stride_sample=step)
    kernels.get("label_noise_loss", "triton", "cpu")(
        torch.zeros(count, batch, classes, requires_grad=True),
        torch.zeros(count, batch, dtype=torch.int64),
        torch.arange(count),
        torch.arange(count),
        p=p,
        seed=torch.arange(count),
    )
    slot = FIRST + np.arange(count, dtype=np.int64)
    sample = np.add.outer(slot * batch, np.arange(batch))
    logits = np.add.outer(np.add.outer(slot * batch * classes, np.arange(batch) * step), np.arange(classes))
    expected = launch.addresses("logits", logits) | launch.addresses("targets", sample)
    expected |= launch.addresses("grad", np.add.outer(sample * classes, np.arange(classes)))
    expected |= launch.addresses("losses", slot) | launch.addresses("correct", slot)
    if isinstance(p, Tensor) or p:
        expected |= launch.addresses("clients", slot) | launch.addresses("step", slot) | launch.addresses("seed", slot)
    if isinstance(p, Tensor):
        expected |= launch.addresses("p", slot)
    assert launch.used == expected
