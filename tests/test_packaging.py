"""What a user gets from `pip install`: the wheel, built from a copy of the sources so that the tree stays as it is."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fastlocal

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("bench", "fastlocal", "kernels", "tests", "LICENSE", "README.md", "pyproject.toml", "setup.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    copy = tmp_path_factory.mktemp("sources")
    for source in (ROOT / name for name in SOURCES):
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / source.name, symlinks=True, ignore=ignored)
        elif source.is_file():
            shutil.copy(source, copy)
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
    done = subprocess.run([*pip, str(copy)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.iterdir()
    return zipfile.ZipFile(file)


def modules_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py") if "__pycache__" not in path.parts}


def test_every_module_of_the_tree_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    own = {f"fastlocal/{name}" for name in modules_in(ROOT / "fastlocal")}
    kernels = {f"fastlocal/kernels/{name}" for name in modules_in(ROOT / "kernels")}
    assert kernels
    assert {name for name in wheel.namelist() if name.endswith(".py")} == own | kernels


def test_the_digits_come_with_their_attribution(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {"fastlocal/data/datasets/digits.npz", "fastlocal/data/datasets/digits_source.txt"} <= names


def test_the_sources_of_what_is_compiled_on_the_spot_come_along(wheel: zipfile.ZipFile) -> None:
    sources = {path.name for path in (ROOT / "kernels" / "native").iterdir() if path.suffix in (".cpp", ".h")}
    assert len(sources) > 1
    assert {f"fastlocal/kernels/native/{name}" for name in sources} <= set(wheel.namelist())


def test_the_style_and_script_of_reports_come_along(wheel: zipfile.ZipFile) -> None:
    assert {"fastlocal/reports/report.css", "fastlocal/reports/report.js"} <= set(wheel.namelist())


def test_nothing_else_is_installed(wheel: zipfile.ZipFile) -> None:
    folders = {name.split("/")[0] for name in wheel.namelist()}
    assert folders == {"fastlocal", f"fastlocal-{fastlocal.__version__}.dist-info"}


def test_the_command_is_installed(wheel: zipfile.ZipFile) -> None:
    entries = configparser.ConfigParser()
    entries.read_string(wheel.read(f"fastlocal-{fastlocal.__version__}.dist-info/entry_points.txt").decode())
    assert dict(entries["console_scripts"]) == {"fastlocal": "fastlocal.cli:main"}
