"""How a backend is chosen, and what is said where the one that was asked for cannot run."""

from __future__ import annotations

import inspect
import logging

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.autotuner import Autotuner

from fastlocal import kernels
from fastlocal.kernels.conv2d_clients.geometry import Geometry
from fastlocal.kernels.conv2d_clients.operator import choose
from fastlocal.kernels.noisy_targets.reference import noisy_targets
from fastlocal.kernels.norm_act.operator import faster_than_torch

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def test_unknown_ops_and_backends_are_named() -> None:
    with pytest.raises(ValueError, match="unknown op 'clientsgd'; known: .*client_sgd"):
        kernels.get("clientsgd")
    with pytest.raises(ValueError, match="unknown backend 'cuda' for client_sgd; known: auto, reference, cpu, triton"):
        kernels.get("client_sgd", "cuda")


def test_an_op_without_a_kernel_has_its_reference() -> None:
    assert kernels.get("noisy_targets") is noisy_targets
    with pytest.raises(ValueError, match="'triton' of noisy_targets cannot run: it has no Triton kernel"):
        kernels.get("noisy_targets", "triton")


def test_what_is_written_for_a_cpu_is_taken_there_alone() -> None:
    assert kernels.get("gather_augment", device="cpu").__module__.endswith("gather_augment.cpu")
    with pytest.raises(ValueError, match="'cpu' of gather_augment cannot run: the tensors are on cuda:1"):
        kernels.get("gather_augment", "cpu", "cuda:1")
    with pytest.raises(ValueError, match="'cpu' of client_sgd cannot run: it has no such implementation"):
        kernels.get("client_sgd", "cpu", "cpu")


@no_gpu
def test_triton_without_a_gpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.get("client_sgd", "triton", "cpu").__module__.endswith("client_sgd.triton_kernel")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    for device in (None, "cpu", "cuda"):
        with pytest.raises(ValueError, match="'triton' of client_sgd cannot run: no CUDA device"):
            kernels.get("client_sgd", "triton", device)


@no_gpu
def test_auto_is_the_reference_without_a_gpu_even_under_the_interpreter() -> None:
    assert kernels.get("client_sgd", device="cpu").__module__.endswith("client_sgd.reference")


@pytest.mark.parametrize(
    ("capability", "file"), [((7, 5), "reference"), ((8, 0), "triton_kernel"), ((9, 0), "triton_kernel")]
)
def test_auto_needs_capability_8(
    capability: tuple[int, int], file: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    kernels._log_choice.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert kernels.get("client_sgd", device="cuda:0").__module__.endswith(f"client_sgd.{file}")
    assert len(caplog.records) == 1 and "a card" in caplog.text
    kernels._log_choice.cache_clear()
    assert kernels.get("client_sgd", device="cpu").__module__.endswith("client_sgd.reference")
    if capability < (8, 0):
        with pytest.raises(ValueError, match="a card has compute capability 7.5, below 8.0"):
            kernels.get("client_sgd", "triton", "cuda:0")


def test_auto_does_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_has_triton", lambda: False)
    assert kernels.get("client_sgd").__module__.endswith("client_sgd.reference")
    with pytest.raises(ValueError, match="triton is not installed"):
        kernels.get("client_sgd", "triton")


@pytest.mark.parametrize("installed", [True, False])
def test_convolutions_and_norms_take_triton_where_it_runs(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        # before a GPU seems to be there: torch 2.11 then makes a real tensor beside the first fake one
        x, weight = torch.empty(2, 8, 4, 9, 9, device="cuda:0"), torch.empty(2, 5, 4, 3, 3, device="cuda:0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(kernels, "_has_triton", lambda: installed)
        assert choose(x, weight, Geometry()) == ("triton" if installed else "grouped")
        assert choose(x.double(), weight.double(), Geometry()) == "grouped"
        assert faster_than_torch(x) == installed and not faster_than_torch(x.double())


def test_the_choice_is_a_constant_of_compiled_code() -> None:
    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x * (3 if kernels.runs_triton(x.device) else 2)

    assert torch.compile(scaled, fullgraph=True, backend="eager")(torch.ones(1)).item() == 2


def test_ops_whose_bits_may_differ_say_so() -> None:
    """Those that take the fastest tile. None uses atomics."""
    timed = set()
    for op in kernels.TRITON_OPS:
        module = inspect.getmodule(kernels.load(op, "triton"))
        if any(isinstance(value, Autotuner) for value in vars(module).values()):
            timed.add(op)
        assert "atomic_" not in inspect.getsource(module)
    assert timed == kernels.AUTOTUNED
    assert not kernels.deterministic("conv2d_clients") and kernels.deterministic("client_mean")
    assert not kernels.deterministic("client_mean", "reference")
