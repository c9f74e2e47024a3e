"""The fenced blocks of README.md and docs/, and the commands in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
FENCE = re.compile(r"^```([\w-]*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: its language, the title behind it, and its text."""

    page: Path
    language: str
    title: str
    text: str


class Command(NamedTuple):
    """A command and where it stands."""

    page: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.name}: {shlex.join(self.words)}"


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    return [Block(page, *found.groups(default="")) for found in FENCE.finditer(page.read_text(encoding="utf-8"))]


def commands(page: Path) -> list[Command]:
    """Return the commands in the `sh` blocks of a page, comments aside."""
    text = "\n".join(block.text for block in blocks(page) if block.language == "sh")
    lines = text.replace("\\\n", " ").splitlines()
    split = (shlex.split(line, comments=True) for line in lines)
    return [Command(page, tuple(words)) for words in split if words]
