"""Tests of optional packages: skipped where a package is missing, failed where all are asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TEST = """
import pytest

@pytest.mark.needs("a_package_of_nobody")
def test_missing():
    raise AssertionError("is not run")

@pytest.mark.needs("pytest")
def test_there():
    pass
"""


@pytest.mark.parametrize("switch, outcome", [("0", "1 passed, 1 skipped"), ("1", "1 passed, 1 error")])
def test_a_missing_package_skips_or_fails_a_test(tmp_path: Path, switch: str, outcome: str) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_some.py").write_text(TEST)
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-rsE", "-p", "no:cacheprovider", str(tmp_path)]
    environment = os.environ | {"FASTLOCAL_TEST_ALL": switch}
    done = subprocess.run(pytest_, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert outcome in done.stdout and "the optional package a_package_of_nobody is not installed" in done.stdout
