"""Python in the documentation runs as it stands, and does what the text beside it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

DOCS = Path(__file__).parent.parent / "docs"


def test_the_example_of_the_page_on_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A buffer that forward changes, dropout, a loss that holds the model, a Dataset that draws."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    torch.manual_seed(0)
    exec(code, names)
    assert capsys.readouterr().out.startswith("tensor(40) ")
    run = names["run"]
    assert run.history[-1]["val_acc1"] > 0.8 and run.model.center.norm() > 0
    assert names["model"].calls == 0 and (run.directory / "latest.pt").exists()
