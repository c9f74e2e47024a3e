"""Tests of the code that runs on a GPU, a process for each file, so that a broken device context stays in its file.

    python -m tests.kernels.on_device --out DIR [--seconds N]

Writes tests.csv. The tests run without conftest.py, which is about machines without a GPU and needs more packages. The
gate of bench.kernels does what tests/kernels/test_ops.py would do.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from bench import processes
from bench.common import ROOT, Row, write_rows
from bench.device import NO_GPU

FILES = (
    "kernels/test_conv2d_clients.py",
    "kernels/test_client_rows.py",
    "kernels/test_norm_act.py",
    "kernels/test_in_training.py",
    "executors/test_cuda_graphs.py",
    "kernels/test_label_noise_loss.py",
    "kernels/test_arguments.py",
    "kernels/test_custom_ops.py",
    "kernels/test_functional_refusals.py",
    "kernels/test_checker.py",
    "kernels/test_triton_parts.py",
)
"""Files under tests/ whose tensors live on the CUDA device if there is one.

Tests of addresses and of the choice of tiles need Triton's interpreter and skip themselves on a GPU."""

NEED_PILLOW = ("kernels/test_in_training.py", "executors/test_cuda_graphs.py")
"""Files that import the trainer, and with it Pillow."""

PARALLEL_FILES = 4
"""Files that run at the same time: compilers take most of their time."""

DESELECTED = "tests/kernels/test_custom_ops.py::test_compiled_by_inductor"
"""A test of the CPU that needs a C++ compiler."""


def run_file(path: Path, seconds: float) -> Row:
    """Run the tests of a file for at most this time; return their counts and the first failure."""
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]
    command += ["--deselect", DESELECTED]
    variables = {"TRITON_INTERPRET": None, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        deadline = time.monotonic() + max(seconds, 1.0)
        result = processes.run([*command, f"--junitxml={report}", str(path)], deadline, variables, cwd=ROOT)
        if result.status is None:
            return make_row(path, failed=1, first=f"still running after {seconds:.0f} s")
        if not report.exists():
            first = result.lines[-1].strip() if result.lines else f"exit status {result.status}"
            return make_row(path, failed=1, first=first)
        return read_report(path, report)


def read_report(path: Path, report: Path) -> Row:
    """Return the row of a file from pytest's JUnit XML."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failures = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    first = ""
    if failures:
        element = next(child for child in failures[0] if child.tag in ("failure", "error"))
        lines = (element.get("message") or element.text or "").splitlines()
        first = f"{failures[0].get('name')}: {lines[0] if lines else ''}"
    passed = len(cases) - len(failures) - skipped
    return make_row(path, passed=passed, failed=len(failures), skipped=skipped, first=first)


def make_row(path: Path, *, passed: int = 0, failed: int = 0, skipped: int = 0, first: str = "") -> Row:
    """Return a row of tests.csv; `first` says what failed first, or why nothing ran."""
    counts = {"passed": str(passed), "failed": str(failed), "skipped": str(skipped)}
    return {"file": path.name, **counts, "first": first}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    flags = argparse.ArgumentParser(prog="python -m tests.kernels.on_device", description=__doc__.splitlines()[0])
    flags.add_argument("--out", type=Path, required=True, help="folder for tests.csv")
    flags.add_argument("--seconds", type=float, default=300.0, help="for all files together")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the files; return 1 if a test failed, 2 without a GPU."""
    options = parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print(NO_GPU)
        return 2
    end = time.monotonic() + options.seconds

    def run(name: str) -> Row:
        path = ROOT / "tests" / name
        if name in NEED_PILLOW and importlib.util.find_spec("PIL") is None:
            return make_row(path, first="not run: Pillow is not installed")
        return run_file(path, end - time.monotonic())

    rows: list[Row] = []
    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        for row in pool.map(run, FILES):
            rows.append(row)
            write_rows(options.out / "tests.csv", rows)
            print(" ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return 1 if any(row["failed"] != "0" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
