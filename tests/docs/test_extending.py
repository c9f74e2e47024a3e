"""The examples of docs/extending.md, in a copy of the repository: written, wired up, tested and trained."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, blocks, commands

PAGE = ROOT / "docs" / "extending.md"
COPIED = ("bench", "fastlocal", "kernels", "tests", "pyproject.toml")
ELSEWHERE = (("python", "-m", "tests.docs.regenerate"), ("mkdocs", "build", "--strict"))
"""Commands that test_generated.py and test_site.py run."""
STEPS = "odd-nesterov or changes_the_stack or chunking"
"""Of the tests of an executor: its steps, that it changes nothing else, and that chunks do not matter."""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with every file and change of the page."""
    copy = tmp_path_factory.mktemp("extended")
    for name in COPIED:
        path = ROOT / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "results")
            shutil.copytree(path, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(path, copy)
    for block in blocks(PAGE):
        if block.title:
            target = copy / block.title
            target.parent.mkdir(exist_ok=True)
            if block.language == "diff":
                target.write_text(changed(target.read_text(encoding="utf-8"), block), encoding="utf-8")
            else:
                assert not target.exists(), f"{block.title} is there already"
                target.write_text(block.text, encoding="utf-8")
    return copy


def changed(text: str, block: Block) -> str:
    """Return the text with the changes of a diff, whose hunks each fit in one place."""
    for hunk in block.text.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        after = "".join(line[1:] for line in lines if line[0] != "-")
        assert text.count(before) == 1, f"{block.title}: {before!r} is there {text.count(before)} times"
        text = text.replace(before, after)
    return text


def python(copy: Path, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_commands_of_the_page_succeed(extended: Path) -> None:
    """One process runs the tests of the kernel and of the executor, and then every `fastlocal` command."""
    given = [command.words for command in commands(PAGE)]
    tests = [words for words in given if words[:3] == ("python", "-m", "pytest")]
    trained = [words[1:] for words in given if words[0] == "fastlocal"]
    others = [words for words in given if words not in tests and words[1:] not in trained]
    assert others == list(ELSEWHERE)
    names = {words[-1] for words in tests}
    assert names == {"client_scale", "rowwise"} and all(words[-2] == "-k" for words in tests)
    only = f"client_scale or (rowwise and ({STEPS}))"
    code = f"""
import sys, pytest
from fastlocal.cli import main
status = pytest.main(["-q", "-p", "no:cacheprovider", "-k", {only!r}, *{sorted({words[3] for words in tests})!r}])
sys.exit(status or next((status for words in {trained!r} if (status := main([*words]))), 0))
"""
    said = python(extended, "-c", code)
    assert re.search(r"^ +32 +[\d.]+ +1\.0000$", said, flags=re.MULTILINE), "stripes are easy to tell apart"
    assert "32 clients, 1 communication rounds." in said
