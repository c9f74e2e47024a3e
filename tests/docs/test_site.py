"""The site that mkdocs builds has no warning, no dead link and no empty page, and loads nothing from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import PAGES, ROOT
from tests.helpers.browser import DESKTOP, PHONE, chromium, overflow, served, watched

if TYPE_CHECKING:
    from playwright.sync_api import ViewportSize

pytestmark = [pytest.mark.needs("mkdocs", "material")]
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Page(HTMLParser):
    """What a page refers to and what can be read in its article.

    Attributes:
        links: Values of href and src.
        loaded: Those of scripts, styles and images, which a browser fetches by itself.
        anchors: Values of id.
        text: Text of the article outside of code.
        tables: Tables in the article.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.loaded, self.anchors = list[str](), list[str](), set[str]()
        self.text, self.tables = "", 0
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        target = given.get("href") or given.get("src")
        if target and not (tag == "link" and given.get("rel") in ("canonical", "next", "prev")):
            self.links.append(target)
            if tag in ("script", "link", "img"):
                self.loaded.append(target)
        self.anchors |= {given["id"]} if "id" in given else set()
        self.tables += tag == "table" and "article" in self._open
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "article" in self._open and not {"code", "pre", "script", "style"} & {*self._open}:
            self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # the theme's notice about the next version of mkdocs
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_page_is_there_and_says_something(site: Path, pages: dict[Path, Page]) -> None:
    expected = {"index.html" if page.name == "README.md" else f"{page.stem}.html" for page in PAGES}
    assert expected == {path.name for path in pages} - {"404.html"}
    for name in expected:
        page = pages[site / name]
        assert len(page.text) > 500, name
        assert "](" not in page.text and "```" not in page.text and "| ---" not in page.text, f"raw Markdown in {name}"
    assert pages[site / "index.html"].tables >= 5 and pages[site / "flags.html"].tables >= 15


def test_every_link_leads_somewhere(pages: dict[Path, Page]) -> None:
    dead, followed = [], 0
    for path, page in pages.items():
        for link in page.links:
            where = urlsplit(link)
            if where.scheme or where.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(where.path)).resolve() if where.path else path
            target = target / "index.html" if target.is_dir() else target
            followed += 1
            if not target.exists() or (where.fragment and where.fragment not in _anchors(pages, target)):
                dead.append(f"{path.name}: {link}")
    assert dead == [] and followed > 100


def _anchors(pages: dict[Path, Page], target: Path) -> set[str]:
    return pages[target].anchors if target in pages else set()


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page]) -> None:
    assert [link for page in pages.values() for link in page.loaded if urlsplit(link).netloc] == []


def size(shape: tuple[int, int]) -> ViewportSize:
    return {"width": shape[0], "height": shape[1]}


@pytest.mark.needs("playwright")
def test_a_browser_shows_every_page_without_an_error_at_the_width_of_a_phone(pages: dict[Path, Page]) -> None:
    """Nothing is cut off: what is wider than the window can be scrolled by itself."""
    cut = "table.offsetWidth > table.parentElement.clientWidth"
    fixed = "getComputedStyle(table.parentElement).overflowX != 'auto'"
    any_cut = f"() => [...document.querySelectorAll('article table')].some(table => {cut} && {fixed})"
    with served(next(iter(pages)).parent) as address, chromium() as browser:
        page = browser.new_page()
        faults = watched(page)
        for path in pages:
            page.set_viewport_size(size(DESKTOP))
            page.goto(f"{address}/{path.name}")
            for shape in (DESKTOP, PHONE):
                page.set_viewport_size(size(shape))
                assert overflow(page) == [] and not page.evaluate(any_cut), (path.name, shape)
        assert faults == []
        page.evaluate("() => document.body.insertAdjacentHTML('beforeend', '<p style=min-width:500px>wide')")
        assert overflow(page) != [], "a paragraph of 500 pixels is not noticed"
