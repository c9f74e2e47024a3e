"""Which tile a convolution takes: timed anew only where another may be best, and not at all in deterministic runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastlocal import kernels
from fastlocal.kernels.conv2d_clients import triton_kernel, triton_tiles
from fastlocal.kernels.conv2d_clients.geometry import Geometry
from fastlocal.kernels.conv2d_clients_input_grad import triton_kernel as triton_input_grad
from fastlocal.kernels.conv2d_clients_weight_grad import triton_kernel as triton_weight_grad

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter")

AUTOTUNED = {
    "conv2d_clients": triton_kernel._forward_kernel,
    "conv2d_clients_input_grad": triton_input_grad._input_grad_kernel,
    "conv2d_clients_weight_grad": triton_weight_grad._weight_grad_kernel,
}


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """As on a GPU, tiles are timed; here by the clock of a list that grows by the kernel's name at each."""
    calls: list[str] = []

    def bench_of(name: str) -> Callable[..., list[float]]:
        def bench(run: Callable[[], None], quantiles: Any) -> list[float]:
            calls.append(name)
            return [1.0 + len(calls)] * 3

        return bench

    for name, kernel in AUTOTUNED.items():
        monkeypatch.setitem(vars(kernel), "do_bench", bench_of(name))
        monkeypatch.setattr(kernel, "cache", {})
        monkeypatch.setattr(kernel, "cache_results", False)
    monkeypatch.setattr(triton_tiles, "knobs", SimpleNamespace(runtime=SimpleNamespace(interpret=False)))
    yield calls
    torch.use_deterministic_algorithms(False)


def run(op: str, clients: int = 2, stride: tuple[int, int] = (1, 1), dilation: int = 1, **options: Any) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    geometry = Geometry(stride, (1, 1), (dilation, dilation))
    # more than one tile has to fit, of which those of this op take many pixels at a time
    batch = 4 if op == "conv2d_clients_weight_grad" else 1
    x, weight = torch.randn(clients, batch, 2, 4, 5, generator=draw), torch.randn(clients, 3, 2, 2, 2, generator=draw)
    inputs: dict[str, Any] = {"x": x, "weight": weight, "geometry": geometry}
    if op != "conv2d_clients":
        inputs["grad"] = torch.randn(geometry.check(x, weight), generator=draw)
    found: Tensor = kernels.get(op, "triton", "cpu")(**inputs, **options)
    # the interpreter multiplies in fp32
    torch.testing.assert_close(found, kernels.get(op, "reference", "cpu")(**inputs), rtol=1e-4, atol=1e-5)
    return found


@pytest.mark.parametrize("op", sorted(kernels.AUTOTUNED))
def test_a_tile_is_chosen_once_for_what_it_depends_on(op: str, timed: list[str]) -> None:
    def choices(**options: Any) -> int:
        run(op, **options)
        return len(AUTOTUNED[op].cache)

    assert choices() == 1 and len(timed) > 1
    assert choices() == 1
    assert choices(tf32=False) == 2  # three products instead of one
    assert choices(stride=(1, 2)) == 3
    assert choices(dilation=2) == 4
    before = len(timed)
    assert choices() == choices(tf32=False) == choices(stride=(1, 2)) == 4
    if op != "conv2d_clients_weight_grad":  # whose sums are cut by how many clients there are
        assert choices(clients=1) == 4
    assert len(timed) == before


@pytest.mark.parametrize("op", sorted(kernels.AUTOTUNED))
def test_deterministic_runs_time_nothing_and_repeat_every_bit(op: str, timed: list[str]) -> None:
    torch.use_deterministic_algorithms(True)
    assert kernels.deterministic(op)
    first, again = run(op), run(op)
    assert torch.equal(first, again) and timed == []
    torch.use_deterministic_algorithms(False)
    assert not kernels.deterministic(op)
    run(op)
    assert set(timed) == {op}
