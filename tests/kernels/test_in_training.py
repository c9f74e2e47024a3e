"""Training through the Triton kernels: what the trainer hands to them is what they take, and the result is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastlocal
from fastlocal import kernels

OPTIONS: dict[str, dict[str, Any]] = {
    "chunks with momentum, clipped": {"momentum": 0.9, "nesterov": True, "clip_norm": 0.5, "chunk": 2, "aug": True},
    "without momentum": {"clients": 1},
    "one client after the other, float64": {"momentum": 0.9, "executor": "looped", "precision": "fp64", "aug": True},
}


def trained(directory: Path, backend: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> dict[str, Any]:
    """The final state_dict, where "auto" is this backend."""
    reason = None if backend == "triton" else "not asked for"
    monkeypatch.setattr(kernels, "_obstacle", lambda device, *, interpreted: reason)
    monkeypatch.setattr(kernels, "_log_choice", lambda device, reason: None)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (24, 4, 5, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    torch.manual_seed(2)
    run = fastlocal.train(
        nn.Sequential(nn.Flatten(), nn.Linear(60, 3)),
        (images, torch.arange(24) % 3),
        (images[:6], torch.arange(6) % 3),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        directory=directory,
        progress=False,
        **{"clients": 3, "local_steps": 2, "batch_size": 4, "lr": 0.05, "rounds": 2, "executor": "stacked", **options},
    )
    found: dict[str, Tensor] = run.model.state_dict()
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_the_trainer_runs_on_the_kernels(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = trained(tmp_path / "plain", "reference", monkeypatch, OPTIONS[name])
    ours = trained(tmp_path / "triton", "triton", monkeypatch, OPTIONS[name])
    for key, value in plain.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
