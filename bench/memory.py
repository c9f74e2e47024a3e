"""Memory: predicted beside measured peaks of short runs, each in a process of its own.

    python -m bench.memory          prints, and writes memory.csv

The measured peak is that of the resident set (VmHWM) on a CPU, and what torch allocated on a GPU. Each run has two
rounds and two evaluations. The prediction should be within 25 % of the peak on a CPU and 10 % on a GPU; `over_torch` is
the ratio without what the process took before training, which hides the error of a small case.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.common import Row, device_folder, machine_columns, merge_rows
from bench.training_case import TrainingCase
from fastlocal.runs.from_config import run_from_config
from fastlocal.runs.run import train

MIB = 2**20
KEYS = ("model", "clients", "batch", "local_steps", "precision", "executor", "conv_strategy", "chunk")
MAX_ERROR = {"cpu": 0.25, "cuda": 0.10}


@dataclass(frozen=True)
class MemoryCase:
    """A training case with an executor and its settings."""

    case: TrainingCase
    executor: str
    chunk: int | None = None
    conv_strategy: str = "auto"


CASES = (
    MemoryCase(TrainingCase("mlp", 64, 16, 8), "stacked"),
    MemoryCase(TrainingCase("mlp", 64, 16, 8), "stacked", chunk=16),
    MemoryCase(TrainingCase("mlp", 1024, 8, 1, momentum=0.0), "stacked", chunk=256),
    MemoryCase(TrainingCase("cnn", 32, 16, 4), "stacked", conv_strategy="im2col"),
    MemoryCase(TrainingCase("cnn", 128, 32, 1), "stacked", conv_strategy="loop"),
    MemoryCase(TrainingCase("resnet20_gn", 8, 32, 2), "looped"),
    MemoryCase(TrainingCase("resnet20_gn", 8, 32, 2), "threaded"),
    MemoryCase(TrainingCase("resnet20_gn", 8, 32, 1), "stacked", conv_strategy="loop"),
    MemoryCase(TrainingCase("resnet20_gn", 8, 32, 1, "bf16"), "looped"),
    MemoryCase(TrainingCase("resnet56", 2, 128, 1), "looped"),
)


def peak_bytes() -> int:
    """Return the peak of this process so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def run_case(one: MemoryCase) -> Row:
    """Predict the peak, train in this process, and return the columns of the measurement."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"executor": one.executor, "conv_strategy": one.conv_strategy, "chunk": one.chunk}
        config = one.case.config(Path(folder) / "run", **settings, rounds=2, eval_freq1=1)
        prepared = run_from_config(config, lambda text: None)
        plan, before = prepared.memory, peak_bytes()
        train(prepared, overwrite=False, make_loggers=lambda directory: [])
    predicted, measured, torch_bytes = plan.needs.total(plan.chunk), peak_bytes(), plan.needs.torch
    return {
        "chunk": str(plan.chunk),
        "predicted_mib": f"{predicted / MIB:.2f}",
        "measured_mib": f"{measured / MIB:.2f}",
        "before_mib": f"{before / MIB:.2f}",
        "ratio": f"{predicted / measured:.2f}",
        "over_torch": f"{(predicted - torch_bytes) / max(measured - torch_bytes, 1):.2f}",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cases; return 1 if a prediction is further off than it should be."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--only", help="cases of this model")
    parser.add_argument("--out", type=Path, default=device_folder(), help="folder for memory.csv")
    options = parser.parse_args(arguments)
    if options.case:
        values = json.loads(options.case)
        print(json.dumps(run_case(MemoryCase(**values | {"case": TrainingCase(**values["case"])}))))
        return 0
    machine, errors = machine_columns(), []
    print("| case | executor | chunk | predicted MiB | measured MiB | ratio | without torch |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for one in CASES:
        if options.only not in (None, one.case.model):
            continue
        command = [sys.executable, "-m", "bench.memory", "--case", json.dumps(dataclasses.asdict(one))]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            print(f"| {one.case.name} | {one.executor} | | {(result.stderr.splitlines() or ['failed'])[-1]} | | | |")
            continue
        numbers: Row = json.loads(result.stdout.splitlines()[-1])
        errors.append(abs(float(numbers["ratio"]) - 1))
        shown = (numbers[name] for name in ("chunk", "predicted_mib", "measured_mib", "ratio", "over_torch"))
        print(f"| {one.case.name} | {one.executor} | {' | '.join(shown)} |", flush=True)
        row = {name: str(value) for name, value in dataclasses.asdict(one.case).items()}
        row |= {"executor": one.executor, "conv_strategy": one.conv_strategy} | numbers | machine
        merge_rows(options.out / "memory.csv", [row], KEYS)
    if not errors:
        return 1
    limit = MAX_ERROR["cuda" if torch.cuda.is_available() else "cpu"]
    print(f"greatest error: {max(errors):.0%} (at most {limit:.0%} is aimed at)")
    return 0 if max(errors) <= limit else 1


if __name__ == "__main__":
    sys.exit(main())
