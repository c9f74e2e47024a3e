"""Headless Chromium, driven by Playwright, on pages that a local server hands out."""

from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

DESKTOP, PHONE = (1280, 800), (390, 844)
"""Widths and heights of windows in CSS pixels."""
SWITCHES = ("--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update")
"""Root needs the first; with the others Chromium asks the network for nothing."""
BEYOND = """() => [...document.querySelectorAll('body *')]
  .filter(one => one.checkVisibility() && one.getBoundingClientRect().right > innerWidth + 1)
  .map(one => `${one.tagName.toLowerCase()}.${one.className} to ${Math.round(one.getBoundingClientRect().right)} px`)
"""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Hand out the files of a folder; yield its address."""

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium without a window; the test is skipped, or fails, where there is none."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        stop = pytest.fail if os.environ.get("FASTLOCAL_TEST_ALL") == "1" else pytest.skip
        stop("Chromium is not installed (Debian's chromium, `make test` installs it)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(SWITCHES))
        try:
            yield browser
        finally:
            browser.close()


def watched(page: Page) -> list[str]:
    """Return a list that receives errors of the page's scripts, failed requests, and requests to other hosts."""
    faults: list[str] = []

    def fail(request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # the next page was asked for before this one had everything
            faults.append(f"{request.url}: {request.failure}")

    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", fail)
    page.on("response", lambda found: faults.append(f"{found.url}: {found.status}") if found.status >= 400 else None)
    page.route(
        lambda address: not address.startswith(("http://127.0.0.1:", "data:", "blob:")),
        lambda route: (faults.append(f"{route.request.url} is asked of another host"), route.abort()),
    )
    return faults


def overflow(page: Page) -> list[str]:
    """Return the elements that make the page wider than its window; none if it cannot be scrolled sideways."""
    if page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"):
        return []
    found: list[str] = page.evaluate(BEYOND)
    return found or ["something is wider than the window"]
