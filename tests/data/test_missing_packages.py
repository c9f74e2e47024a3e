"""An interpreter without FFCV and DALI: what needs them says in one line how they are installed, and writes nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from fastlocal.data.images.arrays import ArrayImages
from tests.data import sources
from tests.helpers.command_line import tree, write_npz

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = """
import io, json, sys
from contextlib import redirect_stderr
from fastlocal.cli import main
for command in json.loads(sys.argv[1]):
    with redirect_stderr(io.StringIO()) as said:
        status = main(command)
    print(json.dumps([status, said.getvalue()]))
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is installed here, but for FFCV and DALI."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "nvidia").mkdir()
    for installed in {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}:
        for path in [*installed.iterdir(), *installed.glob("nvidia/*")]:
            place = folder / path.relative_to(installed)
            if path.name not in ("ffcv", "dali", "nvidia") and not path.name.endswith(".pth") and not place.exists():
                place.symlink_to(path)
    return folder


def said_of(commands: list[list[str]], packages: Path, *others: Path) -> list[str]:
    """What each command says as it is refused."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, packages, *others)))}
    words = [sys.executable, "-S", "-c", COMMANDS, json.dumps(commands)]
    done = subprocess.run(words, cwd=packages, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    for status, said in outcomes:
        assert status == 2 and said.startswith("fastlocal: error: ") and said.count("\n") == 1, said
    return [said for _, said in outcomes]


@pytest.mark.needs("ffcv")
def test_what_needs_a_package_says_how_it_is_installed(packages: Path, tmp_path: Path) -> None:
    """A file of FFCV's own is read by FFCV where that is asked for."""
    data = str(write_npz(tmp_path / "data.npz", channels=3))
    stored = str(sources.beton(tmp_path, ArrayImages(sources.cifar().inputs), "raw"))
    before, run = tree(tmp_path), str(tmp_path / "run")
    train = ["train", "--log-pth", run, "--device", "cpu", "--clients", "2", "--batch-size", "8", "--source"]
    commands = [
        [*train, "dali", "--dataset", "npz", "--data-pth", data],
        ["prepare", "--dataset", "npz", "--data-pth", data, "--out", str(tmp_path / "out")],
        [*train, "ffcv", "--dataset", "beton", "--train-pth", stored, "--val-pth", stored],
    ]
    dali, beton, ffcv = said_of(commands, packages)
    assert "--source dali: DALI cannot be imported" in dali and "pip install 'fastlocal[dali]'" in dali
    assert "--format beton: needs FFCV" in beton and "pip install 'fastlocal[ffcv]'" in beton
    assert "apt-get install g++ python3-dev pkg-config libopencv-dev libturbojpeg0-dev" in beton
    assert "--source ffcv: FFCV cannot be imported" in ffcv and "python3-dev" in ffcv
    assert tree(tmp_path) <= before | {"out"}


@pytest.mark.needs("ffcv")
def test_a_system_library_that_is_missing_is_named(packages: Path, tmp_path: Path) -> None:
    found = importlib.util.find_spec("ffcv")
    assert found is not None and found.origin is not None
    shutil.copytree(Path(found.origin).parent, tmp_path / "linked" / "ffcv")
    (extension,) = (tmp_path / "linked" / "ffcv").glob("_libffcv*.so")
    needed = re.findall(rb"\0(libturbojpeg\.so\.\d)\0", extension.read_bytes())
    absent = needed[0][:-4] + b"no.9"
    extension.write_bytes(extension.read_bytes().replace(needed[0], absent))  # asked for by the system's own loader
    beton = str(sources.beton(tmp_path, ArrayImages(sources.cifar().inputs), "raw"))
    run, out = tmp_path / "run", tmp_path / "out"
    train = ["train", "--dataset", "beton", "--train-pth", beton, "--val-pth", beton, "--log-pth", str(run)]
    prepare = ["prepare", "--dataset", "digits", "--out", str(out)]
    commands = [[*train, "--source", "ffcv", "--clients", "2", "--batch-size", "8"], prepare]
    for said in said_of(commands, packages, tmp_path / "linked"):
        assert f"{absent.decode()}: cannot open shared object file" in said and "libturbojpeg0-dev" in said
    assert not run.exists() and not list(tmp_path.glob("out/*"))
