"""Predicted and measured peak memory of short runs, each in a process of its own.

    python -m bench.memory          prints and writes bench/results/DEVICE/memory.csv

On a CPU the peak is the resident set's (VmHWM), on a GPU what torch allocated there. Each run has two rounds and two
evaluations. The prediction aims at 25 % of the measured peak on a CPU and at 10 % on a GPU; `over_torch` holds the
ratio of both without what the process had taken before training, which a small case hides behind.
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

from bench.case import RESULTS, Case, device_name, machine
from bench.tables import Row, merge
from fastlocal.runs.from_config import run_from_config
from fastlocal.runs.run import train

MIB = 2**20
KEYS = ("model", "clients", "batch", "local_steps", "precision", "executor", "conv_strategy", "chunk")
AIM = {"cpu": 0.25, "cuda": 0.10}


@dataclass(frozen=True)
class Measured:
    case: Case
    executor: str
    chunk: int | None = None
    conv_strategy: str = "auto"


CASES = (
    Measured(Case("mlp", 64, 16, 8), "stacked"),
    Measured(Case("mlp", 64, 16, 8), "stacked", chunk=16),
    Measured(Case("mlp", 1024, 8, 1, momentum=0.0), "stacked", chunk=256),
    Measured(Case("cnn", 32, 16, 4), "stacked", conv_strategy="im2col"),
    Measured(Case("cnn", 128, 32, 1), "stacked", conv_strategy="loop"),
    Measured(Case("resnet20_gn", 8, 32, 2), "looped"),
    Measured(Case("resnet20_gn", 8, 32, 2), "threaded"),
    Measured(Case("resnet20_gn", 8, 32, 1), "stacked", conv_strategy="loop"),
    Measured(Case("resnet20_gn", 8, 32, 1, "bf16"), "looped"),
    Measured(Case("resnet56", 2, 128, 1), "looped"),
)


def peak() -> int:
    """Bytes at the peak of this process so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def run_one(one: Measured) -> dict[str, float | str]:
    """What is predicted, and what the run then takes."""
    with tempfile.TemporaryDirectory() as folder:
        more = {"executor": one.executor, "conv_strategy": one.conv_strategy, "chunk": one.chunk}
        config = one.case.config(Path(folder) / "run", **more, rounds=2, eval_freq1=1)
        prepared = run_from_config(config, lambda text: None)
        plan = prepared.memory
        before = peak()
        train(prepared, overwrite=False, sinks=lambda directory: [])
        predicted, measured, torch_itself = plan.needs.total(plan.chunk), peak(), plan.needs.torch
    return {
        "chunk": str(plan.chunk),
        "predicted_mib": predicted / MIB,
        "measured_mib": measured / MIB,
        "before_mib": before / MIB,
        "ratio": predicted / measured,
        "over_torch": (predicted - torch_itself) / max(measured - torch_itself, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__.splitlines()[0])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--only", help="cases of this model")
    parser.add_argument("--out", type=Path, default=RESULTS / device_name(), help="folder for memory.csv")
    asked = parser.parse_args(arguments)
    if asked.case:
        given = json.loads(asked.case)
        print(json.dumps(run_one(Measured(**given | {"case": Case(**given["case"])}))))
        return 0
    about, measured, worst = machine(), 0, 0.0
    print("| case | executor | chunk | predicted MiB | measured MiB | ratio | without torch |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for one in CASES:
        if asked.only not in (None, one.case.model):
            continue
        command = [sys.executable, "-m", "bench.memory", "--case", json.dumps(dataclasses.asdict(one))]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"| {one.case.name} | {one.executor} | | {(done.stderr.splitlines() or ['failed'])[-1]} | | | |")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        worst = max(worst, abs(found["ratio"] - 1))
        numbers = {name: value if isinstance(value, str) else f"{value:.2f}" for name, value in found.items()}
        print(
            f"| {one.case.name} | {one.executor} | {numbers['chunk']} | {found['predicted_mib']:,.0f} | "
            f"{found['measured_mib']:,.0f} | {numbers['ratio']} | {numbers['over_torch']} |",
            flush=True,
        )
        shape = {name: str(value) for name, value in dataclasses.asdict(one.case).items()}
        row: Row = shape | {"executor": one.executor, "conv_strategy": one.conv_strategy} | numbers | about
        merge(asked.out / "memory.csv", [row], KEYS)
        measured += 1
    if not measured:
        return 1
    aim = AIM["cuda" if torch.cuda.is_available() else "cpu"]
    print(f"furthest off: {worst:.0%} (aim: {aim:.0%})")
    return 0 if worst <= aim else 1


if __name__ == "__main__":
    sys.exit(main())
