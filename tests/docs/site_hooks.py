"""Hooks of mkdocs.yml: the README is the first page, and figures come from bench/results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
FIGURES = "bench/results/cpu/"


def on_files(files: Files, *, config: Any) -> Files:
    """Add the README, whose links are those of a page in docs/, and the figures that pages show."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=readme.replace("](docs/", "](")))
    for figure in sorted((ROOT / FIGURES).glob("*.png")):
        files.append(File.generated(config, f"{FIGURES}{figure.name}", abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **about: Any) -> str:
    """Return a page with figures where the site has them; one without headings gives the list of them its width."""
    if "\n## " not in markdown:
        page.meta["hide"] = ["toc"]
    return markdown.replace(f"](../{FIGURES}", f"]({FIGURES}")
