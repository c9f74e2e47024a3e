"""How a backend is chosen, and what is said where the one that was asked for cannot run."""

from __future__ import annotations

import logging

import pytest
import torch

from fastlocal import kernels
from fastlocal.kernels.noisy_targets.reference import noisy_targets

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def test_unknown_ops_and_backends_are_named() -> None:
    with pytest.raises(ValueError, match="unknown op 'clientsgd'; known: .*client_sgd"):
        kernels.get("clientsgd")
    with pytest.raises(ValueError, match="unknown backend 'cuda' for client_sgd; known: auto, reference, triton"):
        kernels.get("client_sgd", "cuda")


def test_an_op_without_a_kernel_has_its_reference() -> None:
    assert kernels.get("noisy_targets") is noisy_targets
    with pytest.raises(ValueError, match="'triton' of noisy_targets cannot run: it has no Triton kernel"):
        kernels.get("noisy_targets", "triton")


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
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert kernels.get("client_sgd").__module__.endswith("client_sgd.reference")
    with pytest.raises(ValueError, match="triton is not installed"):
        kernels.get("client_sgd", "triton")
