"""A run of tokens under fake CUDA: captured steps and the fused loss have the numbers of a CPU."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastlocal.kernels import attention
from fastlocal.kernels.composite import rms_norm
from tests.helpers.command_line import metrics, run
from tests.rehearsal.conftest import Rehearsal


def attend(query: Tensor, key: Tensor, value: Tensor, *rest: Any, is_causal: bool = True, **named: Any) -> Tensor:
    """Causal attention in single operations."""
    assert is_causal
    return attention._by_products(query, key, value, None, True, None, False)


class Unfused(TorchFunctionMode):
    """torch's attention and norm in single operations: of their fused ones, a GPU's are in libraries not here."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return attend(*args, **(kwargs or {}))
        if func is F.rms_norm:
            return rms_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def test_gpt_char_as_on_a_cpu(
    tmp_path: Path,
    rehearsed: Rehearsal,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "F", SimpleNamespace(scaled_dot_product_attention=attend))
    folder = tmp_path / "texts"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        words = torch.randint(97, 123, (120 + 30 * number,), generator=generator)
        (folder / f"{number}.txt").write_bytes(bytes(words.tolist()))
    given: list[Any] = ["train", "--dataset", "text", "--data-pth", folder, "--model", "gpt_char", "--context", 7]
    given += ["--n-layers", 1, "--width", 16, "--partition", "natural", "--clients", 3, "--batch-size", 2]
    given += ["--rounds", 1, "--step1", 3, "--client-lr", 0.1, "--tune-seconds", 0, "--executor", "stacked"]
    models = []
    for device in ("cuda", "cpu"):
        with rehearsed() if device == "cuda" else contextlib.nullcontext() as seen:
            directory = tmp_path / device
            with Unfused():
                outcome = run(capsys, *given, "--device", device, "--log-pth", directory)
            assert outcome.status == 0, outcome.err
            assert seen is None or seen.count("graph") > 0
        models.append(torch.load(directory / "latest.pt"))
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=1e-5, atol=1e-5)
    for line, row in zip(*(metrics(tmp_path / device) for device in ("cuda", "cpu")), strict=True):
        assert line == pytest.approx(row, rel=1e-4, abs=1e-5)
