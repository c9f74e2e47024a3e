"""The page of `fastlocal report`, as a browser shows it, and what it says of runs that are not as they should be."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fastlocal.common.errors import UsageError
from fastlocal.data.partition import build
from fastlocal.reports.by_client import by_client_plots
from fastlocal.reports.page import report_page
from fastlocal.reports.plot_data import curves, heat_map
from fastlocal.reports.plots import write_plots
from fastlocal.reports.sweep_records import collect
from tests.helpers.browser import DESKTOP, PHONE, chromium, overflow, served, watched
from tests.helpers.sweep_files import rows_of, write_run, write_sweep

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.needs("matplotlib")]
EVIL = "<img src=x onerror=alert(1)> & \"two\" $'_{"
FIELDS = {"seed": [0, 1, 2], "start_lr": [0.05, 0.1, 0.2], "model": ["mlp", EVIL]}
PROFILE = """rounds 2 to 3: 10 local steps of 32 clients, 0.100 s, 25,493 samples/s while profiled

span                           share    ms/round  ms/local step
plan                           14.8%       7.443
forward                        85.2%   1,015.525          3.105
averaging takes 1.7% of a round
"""
CUT = """() => [...document.querySelectorAll('svg text')].filter(text => {
  const [inner, outer] = [text.getBoundingClientRect(), text.closest('svg').getBoundingClientRect()];
  return inner.left < outer.left - 2 || inner.right > outer.right + 2 || inner.bottom > outer.bottom + 2;
}).map(text => text.textContent)"""
"""Texts of plots that reach beyond their picture."""
CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(one => (one / 255) ** 2.2);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.querySelector('figure')).backgroundColor);
  return Math.min(...[...document.querySelectorAll('svg text')].map(text => {
    if (text.closest('figure').textContent.includes('mean of')) return 21;
    const ink = light(getComputedStyle(text).fill);
    return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
  }));
}"""
"""Least contrast of the texts of plots with their ground, apart from numbers on the colours of a map."""


def status(values: Mapping[str, Any]) -> str:
    return "failed" if values["start_lr"] == 0.2 and values["seed"] == 1 else "done"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 runs, two of which failed; one is profiled, and has clients with samples of their own."""
    folder = write_sweep(
        tmp_path_factory.mktemp("sweeps") / "one",
        FIELDS,
        lambda values: rows_of(0.9 - values["start_lr"] + 0.01 * values["seed"], (0, 5, 10, 20)),
        status,
        name=EVIL,
    )
    first = folder / "seed=0,start_lr=0.05,model=mlp"
    (first / "profile_rank0.txt").write_text(PROFILE)
    build("iid", samples=1437, labels=None, clients=40, seed=0).save(first / "partition.npz")
    lines = [
        {"round": number, "client": client, "samples": 7, "loss": 1.0, "acc1": client / 40 / number, "own_acc1": 1.0}
        for number in (1, 2)
        for client in range(40)
    ]
    (first / "clients.jsonl").write_text("".join(map("{}\n".format, map(json.dumps, lines))) + '{"rou')
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def address(sweep: Path) -> Iterator[str]:
    (sweep / "report.html").write_text(report_page(collect([sweep], "RUN")), encoding="utf-8")
    with served(sweep) as host:
        yield f"{host}/report.html"


@pytest.mark.needs("playwright")
def test_a_browser_shows_all_of_it(browser: Browser, address: str) -> None:
    """On a desk and on a phone, light and dark: nothing is cut off, every text can be read, and nothing is an error."""
    for width, height in (DESKTOP, PHONE):
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            faults = watched(page)
            page.goto(address)
            page.evaluate("() => document.querySelectorAll('details').forEach(one => one.open = true)")
            assert overflow(page) == [] and page.evaluate(CUT) == [], (width, scheme)
            assert page.evaluate(CONTRAST) > 4.5, (width, scheme)
            assert page.locator("svg").count() == 2 + 4 + 2 + 2, "curves, final values, maps, clients"
            titles = [title.inner_text() for title in page.locator("h2").all()]
            assert titles == ["Curves", "Final values", "Settings", "Runs", "Configuration", "Clients", "Time"]
            assert page.locator("h1").inner_text() == EVIL and page.locator("img").count() == 0
            assert faults == [], (width, scheme)
            page.close()


def column(page: Page, name: str, head: str) -> list[str]:
    cells = f"""() => {{
      const table = document.querySelector('[aria-label="{name}"] table');
      const place = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === "{head}");
      return [...table.tBodies[0].rows].map(row => row.cells[place].textContent);
    }}"""
    found: list[str] = page.evaluate(cells)
    return found


@pytest.mark.needs("playwright")
def test_tables_sort_by_click_and_by_key(browser: Browser, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    rates = page.locator('[aria-label="runs"] th', has_text="start_lr")
    rates.locator("button").click()
    assert column(page, "runs", "start_lr") == ["0.05"] * 6 + ["0.1"] * 6 + ["0.2"] * 6
    assert rates.get_attribute("aria-sort") == "ascending"
    rates.locator("button").press("Enter")
    assert column(page, "runs", "start_lr") == ["0.2"] * 6 + ["0.1"] * 6 + ["0.05"] * 6
    assert rates.get_attribute("aria-sort") == "descending"
    page.locator('[aria-label="settings"] th button', has_text="best_val_acc1").click()
    means = [float(text.split()[0]) for text in column(page, "settings", "best_val_acc1")]
    assert means == sorted(means) and len(means) == 6
    page.close()


def test_the_page_says_what_happened(address: str, sweep: Path) -> None:
    text = (sweep / "report.html").read_text(encoding="utf-8")
    for part in (
        "18 runs of 6 settings, 16 done, 2 failed",
        "Best final val_acc1: 0.86, start_lr=0.05,model=mlp; 95% interval 0.8352 to 0.8848 over 3 seeds",
        "the loss is &lt;not&gt; finite",
        "iid: 40 clients of seed=0,start_lr=0.05,model=mlp",
        "accuracy by client of seed=0,start_lr=0.05,model=mlp, round 2",
        "<td data-value=\"1015.525\">1015.5</td>",
    ):
        assert part in text, part
    assert EVIL not in text and "<img" not in text and "http://" not in text.replace("http://www.w3.org/1999/xlink", "")
    assert text.count("</script>") == 1


def test_clients_of_the_last_evaluation_worst_first(sweep: Path) -> None:
    (plot,), left_out = by_client_plots(collect([sweep], "SWEEP").runs)
    model, own = plot.lines
    assert left_out == 0 and list(model.x) == list(range(1, 41))
    assert [point.mean for point in model.points] == [client / 80 for client in range(40)]
    assert {point.mean for point in own.points} == {1.0}


def test_runs_of_different_kinds_and_of_none(tmp_path: Path) -> None:
    """Runs without a row, with NaN, with other metrics, without labels, and of an unknown data set."""
    write_run(tmp_path / "none", [])
    write_run(tmp_path / "nan", [{"comm_round": 1, "epoch": 1, "val_loss": None, "val_acc1": 0.1}], start_lr=9.0)
    write_run(tmp_path / "other", [{"comm_round": 1, "epoch": 1, "own/error": 3.5}], start_lr=0.5)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "metrics.jsonl").write_text('{"comm_round": 3, "epoch": 1.5, "val_loss": 2.0}\n')
    away = write_run(tmp_path / "away", rows_of(0.5), dataset="cifar10", data_pth=str(tmp_path / "nowhere"))
    build("iid", samples=50_000, labels=None, clients=4, seed=0).save(away / "partition.npz")
    names = ("none", "nan", "other", "bare", "away")
    text = report_page(collect([tmp_path / name for name in names], "RUN"))
    assert "own/error" in text and "Labels by client are not shown: the data set is not on this machine" in text
    assert not (tmp_path / "nowhere").exists()
    assert "nan" in report_page(collect([tmp_path / "nan"], "RUN"))
    assert "No run has been evaluated yet." in report_page(collect([tmp_path / "none"], "RUN"))


def test_200_runs_make_a_page_of_moderate_size(tmp_path: Path) -> None:
    fields = {"seed": list(range(5)), "start_lr": [0.01 * 2**i for i in range(8)], "wd": [0.0, 1e-4, 1e-3, 1e-2, 0.1]}
    rounds = range(1, 101)
    write_sweep(tmp_path / "sweep", fields, lambda values: rows_of(0.5 + values["start_lr"] / 9, rounds))
    start = time.process_time()
    text = report_page(collect([tmp_path / "sweep"], "RUN"))
    assert time.process_time() - start < 10 and len(text) < 2**21
    assert "and 30 more" in text, "curves of the best ten settings are drawn"

    long = write_run(tmp_path / "long", rows_of(0.9, range(1, 20_001)))
    (line,) = curves(collect([long], "RUN"), "val_acc1").lines
    assert len(line.x) == len(line.points) == 400 and (line.x[0], line.x[-1]) == (1, 20_000)


def test_plots_are_files(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastlocal.reports.matplotlib_figures import file_svg

    write_plots(sweep)
    names = {path.stem for path in (sweep / "plots").iterdir()}
    assert {"curves_val_acc1_by_comm_round", "final_val_loss_by_start_lr", "map_val_acc1"} <= names
    again = file_svg(heat_map(collect([sweep], "RUN"), "val_acc1"))
    assert (sweep / "plots" / "map_val_acc1.svg").read_bytes() == again, "a plot depends on its numbers alone"
    monkeypatch.setitem(sys.modules, "fastlocal.reports.matplotlib_figures", None)
    with pytest.raises(UsageError, match=r"plots: needs matplotlib; install it with pip install 'fastlocal\[report\]'"):
        write_plots(sweep)
