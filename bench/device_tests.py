"""The tests of what runs on a GPU, a process for each file, so that one that breaks the device breaks no other.

    python -m bench.device_tests --out DIR [--seconds N]

Leaves tests.csv. Without the tests' conftest.py, which is about machines without a GPU and needs more packages. The
walk through all cases (tests/kernels/test_ops.py) is left to the gate of bench.kernels, which is the same.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from bench.device import NO_GPU
from bench.tables import Row, write

ROOT = Path(__file__).resolve().parents[1]
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
"""In tests: those whose tensors live on the CUDA device where there is one.

Tests of addresses and of the choice of tiles need Triton's interpreter and skip themselves there."""

TRAINING = ("kernels/test_in_training.py", "executors/test_cuda_graphs.py")
"""Of these, those that import the trainer, and with it Pillow."""

AT_ONCE = 4
"""Files, as most of their time is that of compilers."""

ELSEWHERE = "tests/kernels/test_custom_ops.py::test_compiled_by_inductor"
"""Is about the CPU, and needs a C++ compiler."""


def run_file(path: Path, seconds: float) -> Row:
    """A row of counts, and the first line of what went wrong first."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"]
        command += ["--deselect", ELSEWHERE]
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            process = subprocess.Popen(
                [*command, f"--junitxml={report}", str(path)],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait(max(seconds, 1.0))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return _row(path, failed=1, first=f"still running after {seconds:.0f} s")
            log.seek(0)
            words = [line.strip() for line in log if line.strip()]
        if not report.exists():
            return _row(path, failed=1, first=words[-1] if words else f"exit status {process.returncode}")
        return read_report(path, report)


def read_report(path: Path, report: Path) -> Row:
    """The row of a file from the XML that pytest wrote about it."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    first = ""
    if bad:
        what = next(child for child in bad[0] if child.tag in ("failure", "error"))
        words = (what.get("message") or what.text or "").splitlines()
        first = f"{bad[0].get('name')}: {words[0] if words else ''}"
    return _row(path, passed=len(cases) - len(bad) - skipped, failed=len(bad), skipped=skipped, first=first)


def _row(path: Path, *, passed: int = 0, failed: int = 0, skipped: int = 0, first: str = "") -> Row:
    return {
        "file": path.name,
        "passed": str(passed),
        "failed": str(failed),
        "skipped": str(skipped),
        "first": first,
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.device_tests", description=__doc__.splitlines()[0])
    made.add_argument("--out", type=Path, required=True, help="folder for tests.csv")
    made.add_argument("--seconds", type=float, default=300.0, help="for all files together")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print(NO_GPU)
        return 2
    end = time.monotonic() + asked.seconds

    def run(name: str) -> Row:
        path = ROOT / "tests" / name
        if name in TRAINING and importlib.util.find_spec("PIL") is None:
            return _row(path, first="not run: Pillow is not installed")
        return run_file(path, end - time.monotonic())

    rows: list[Row] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for row in pool.map(run, FILES):
            rows.append(row)
            write(asked.out / "tests.csv", rows)
            print(" ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return 1 if any(row["failed"] != "0" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
