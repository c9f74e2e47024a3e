"""Python in the documentation runs as it stands, and does what the text beside it says."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fastlocal
from fastlocal.config.serialization import read_config
from fastlocal.reports.tables import TABLES
from tests.docs.pages import PAGES, ROOT, blocks
from tests.helpers.sweep_files import rows_of, write_sweep


def example(name: str) -> str:
    """Return the one block of Python on a page."""
    page = next(page for page in PAGES if page.name == name)
    (code,) = (block.text for block in blocks(page) if block.language == "python" and not block.title)
    return code


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the example of a page in the folder, and return its names."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "example"}
    torch.manual_seed(0)
    exec(example(name), names)
    return names


def test_every_example_has_a_test_here() -> None:
    untitled = [page.name for page in PAGES for block in blocks(page) if block.language == "python" and not block.title]
    pages = ("algorithms", "partitions", "populations", "python", "reports", "sweeps", "verify")
    assert untitled == ["README.md", *(f"{name}.md" for name in pages)]


def test_the_example_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of the last evaluation are those of the table."""
    ended = run("README.md", tmp_path, monkeypatch)["run"]
    assert (ended.directory / "latest.pt").exists() and not ended.model.training
    assert ended.history[-1]["val_acc1"] > 0.9
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text[text.index("| key | value |") :].partition("\n\n")[0], flags=re.MULTILINE)
    assert sorted(key.strip("`") for row in rows for key in row.split(", ")) == sorted(ended.history[-1])


def test_the_example_of_the_page_on_algorithms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It pulls to the start by as much as FedProx with the same coefficient."""
    names = run("algorithms.md", tmp_path, monkeypatch)
    settings = {"partition": names["parts"], "clients": 5, "rounds": 20, "progress": False}
    built_in = fastlocal.train(
        names["model"], names["data"], names["data"], algorithm="fedprox", prox_mu=0.1, directory="built in", **settings
    )
    for ours, theirs in zip(names["run"].model.parameters(), built_in.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_example_of_the_page_on_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = run("partitions.md", tmp_path, monkeypatch)["parts"]
    assert fastlocal.partition.load(tmp_path / "parts.npz").sizes.tolist() == parts.sizes.tolist()


def test_the_example_of_the_page_on_populations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run("populations.md", tmp_path, monkeypatch)["run"]
    assert ended.history[-1]["clients"] == 4
    config = read_config(ended.directory / "config.json")
    assert config.client.population == 10


@pytest.mark.needs("matplotlib")
def test_the_example_of_the_page_on_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = write_sweep(tmp_path / "sweeps" / "rates", {"seed": [0, 1]}, lambda values: rows_of(0.9))
    run("reports.md", tmp_path, monkeypatch)
    text = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")
    assert [name for name in TABLES if not (sweep / name).is_file() or f"| `{name}` |" not in text] == []
    assert any((sweep / "plots").iterdir())


def test_the_example_of_the_page_on_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row for each setting, and each seed has its own start."""
    sweep = run("sweeps.md", tmp_path, monkeypatch)["sweep"]
    assert [(one["n"], one["local_steps"], one["lr"]) for one in sweep.summary] == [
        (3, 1, 0.1), (3, 1, 0.5), (3, 8, 0.1), (3, 8, 0.5),
    ]  # fmt: skip
    assert all(0.3 < one["val_acc1_mean"] <= 1 for one in sweep.summary)
    losses = {(one["seed"], one["lr"]): one["val_loss"] for one in sweep.results if one["local_steps"] == 8}
    assert len({*losses.values()}) == len(losses) == 6


def test_the_example_of_the_page_on_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache_home: Path
) -> None:
    """Of one operation: tests/verification checks all."""
    monkeypatch.setattr(fastlocal, "verify", functools.partial(fastlocal.verify, ops=["client_mean"]), raising=False)
    assert run("verify.md", tmp_path, monkeypatch)["found"].passed


def test_the_example_of_the_page_on_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A buffer that forward changes, dropout, a loss that holds the model, a Dataset that draws."""
    names = run("python.md", tmp_path, monkeypatch)
    assert capsys.readouterr().out.startswith("tensor(40) ")
    ended = names["run"]
    assert ended.history[-1]["val_acc1"] > 0.8 and ended.model.center.norm() > 0
    assert names["model"].calls == 0 and (ended.directory / "latest.pt").exists()
