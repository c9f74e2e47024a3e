"""Every command of README.md and docs/ runs.

Commands of fastlocal run whole where that takes a moment, and with --dry-run where they train for long, which reads
their data and weights, builds the model, takes its first steps and makes the plan. The words of benches and launchers
are checked by these programs' own parsers; other tests run them. tests/docs/test_extending.py runs the commands of
docs/extending.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from torch.distributed.run import parse_args

from fastlocal.cli import COMMANDS, main
from fastlocal.commands.flags import parse
from fastlocal.config.validation import check
from tests.docs import world
from tests.docs.pages import PAGES, ROOT, Command, blocks, commands

GIVEN = [command for page in PAGES if page.name != "extending.md" for command in commands(page)]
INLINE = re.compile(r"`((?:python -m|make|mkdocs|fastlocal) [^`\n]+)`")
NO_TIME = ("--tune-seconds", "0")
VERIFIED = ("--ops", "client_mean,product", "--seconds", "30")


class Parsed(Exception):
    """A program's parser has taken its words."""


def of(*beginning: str) -> list[Command]:
    """Return the commands of all pages that begin with these words."""
    found = [command for command in GIVEN if command.words[: len(beginning)] == beginning]
    assert found, beginning
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of all commands, with a finished run in runs/X."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        world.make(folder, patch)
        patch.chdir(folder)
        yield folder


def test_every_command_belongs_to_a_test_here() -> None:
    known = ("fastlocal", "torchrun", "srun", "make", "pip", "apt-get", "python")
    assert [str(command) for command in GIVEN if command.words[0] not in known] == []
    languages = {block.language for page in PAGES for block in blocks(page)}
    assert languages == {"sh", "text", "python", "diff"}


def fastlocal(words: Sequence[str]) -> list[str]:
    """Return the words of a command of fastlocal as they are run here."""
    words = world.shrunk(words)
    command, rest = words[0], words[1:]
    if command == "verify" and "--ops" not in rest:
        return ["verify", "quickstart", *VERIFIED] if rest == ["quickstart"] else ["plan", *rest]
    if command == "profile":
        return [*words, "--profile-rounds", "1", *NO_TIME]
    if command == "sweep" and "--dry-run" not in rest:
        return [*words, "--dry-run"]
    if command == "train" and not {"--help", "--help-all", "--dry-run"} & {*rest}:
        if "--profile" in rest:
            return [*words, "--rounds", "3", *NO_TIME]
        ended = "--continue" in rest and any(word.startswith("runs/X") for word in rest)
        return [*words, *(() if ended else ("--dry-run",))]
    return words


def run_all(given: Sequence[Sequence[str]], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run commands in this process, and return those that did not end with 0, with what they said."""
    failed = []
    for words in given:
        capsys.readouterr()
        status = main(list(words))
        said = capsys.readouterr()
        if status != 0:
            failed.append(f"{' '.join(words)}: {status}: {said.err[-500:] or said.out[-500:]}")
    return failed


@pytest.fixture(scope="module")
def quickstart(folder: Path) -> str:
    """What the quickstart prints, whose run is runs/X."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert main(["train", "quickstart", "--log-pth", "runs/X", *NO_TIME]) == 0
    return said.getvalue()


def test_commands_of_fastlocal(folder: Path, quickstart: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [fastlocal(command.words[1:]) for command in of("fastlocal")]
    assert run_all([words for place, words in enumerate(given) if words not in given[:place]], capsys) == []


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_commands_of_launchers(launcher: str) -> None:
    for command in of(launcher):
        train, *words = arguments(command)
        assert train == "train"
        check(parse(words).run)


def arguments(command: Command) -> Sequence[str]:
    """Return what a launcher hands to `python -m fastlocal`."""
    if command.words[0] == "srun":
        assert command.words[1:4] == ("python", "-m", "fastlocal")
        return command.words[4:]
    asked = parse_args(list(command.words[1:]))
    assert asked.module and asked.training_script == "fastlocal"
    return asked.training_script_args


def test_programs_take_the_words_of_their_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benches, and the inline commands `python -m ...`."""
    inline = [tuple(found.split()) for found in inline_commands() if found.startswith("python -m")]
    own = argparse.ArgumentParser.parse_args

    def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> None:
        own(parser, arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    failed = []
    for words in [*(command.words for command in of("python", "-m")), *inline]:
        monkeypatch.setattr(sys, "argv", [words[2], *words[3:]])
        monkeypatch.delitem(sys.modules, words[2], raising=False)
        try:
            with contextlib.redirect_stderr(io.StringIO()) as said:
                runpy.run_module(words[2], run_name="__main__", alter_sys=True)
            failed.append(f"{' '.join(words)}: parsed nothing")
        except Parsed:
            pass
        except (SystemExit, ImportError) as error:
            failed.append(f"{' '.join(words)}: {error} {said.getvalue()[-300:]}")
    assert failed == []


def inline_commands() -> set[str]:
    """Return the commands that stand in a sentence or a table."""
    return {found for page in PAGES for found in INLINE.findall(page.read_text(encoding="utf-8"))}


def test_goals_of_make_exist() -> None:
    goals = {command.words[1] for command in of("make")}
    goals |= {found.split()[1] for found in inline_commands() if found.startswith("make ")}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert goals - {*re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE)} == set()


def test_inline_commands_of_fastlocal_exist() -> None:
    named = {found.split()[1] for found in inline_commands() if found.startswith("fastlocal ")}
    assert named - {*COMMANDS} == set()


def test_what_is_installed_is_named_in_setup_and_makefile() -> None:
    setup, makefile = ((ROOT / name).read_text(encoding="utf-8") for name in ("setup.py", "Makefile"))
    extras = {*re.findall(r'^        "(\w+)": ', setup, flags=re.MULTILINE)}
    for command in of("pip", "install"):
        assert re.fullmatch(r"\.(\[\w+\])?", command.words[2]), command
        assert {*re.findall(r"\[(\w+)\]", command.words[2])} <= extras
    for command in of("apt-get", "install"):
        assert {*command.words[2:]} <= {*makefile.split()}, command


def test_the_readme_quotes_the_quickstart(quickstart: str) -> None:
    (quoted,) = (block.text for block in blocks(ROOT / "README.md") if block.language == "text")
    lines = quoted.splitlines()
    assert len(lines) == 5
    assert [line for line in lines[:-1] if line not in quickstart.splitlines()] == []
    assert Path(lines[-1]).name in quickstart


def test_the_readme_lists_what_a_run_writes(folder: Path, quickstart: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## What a run writes") : text.index("## The rooms")]
    patterns = re.findall(r"`([\w=*.]+)`(?=[^|]*\|[^|]*\|[^|\n]*\|$)", section, flags=re.MULTILINE)
    written = [path for path in (folder / "runs" / "X").iterdir() if not path.name.startswith(".")]
    assert len(written) > 4
    assert [path.name for path in written if not any(path.match(pattern) for pattern in patterns)] == []
