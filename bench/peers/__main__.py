"""Train the same rounds by fastlocal and by its peers, in turns with a loop over modules.

    python -m bench.peers [--workloads W1 W2] [--systems fastlocal Flower] [--pairs 5]

Each peer gets an environment of its own. All get the same start weights, samples, cohorts and batches; after two rounds
the loss of each global model is compared with the loop's. Then a turn of the loop and a turn of the system follow each
other. Rows go to peers_rounds.csv, and a figure of it beside.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.common import ROOT, Row, device_folder, machine_columns, merge_rows, read_rows
from bench.peers import environments
from bench.peers.figure import draw
from bench.peers.systems import LOOP, SYSTEMS, System
from bench.peers.turns import Comparison, Side, compare, expected_losses
from bench.peers.workloads import WORKLOADS, Workload, write_files

TABLE = "peers_rounds.csv"


def row(workload: Workload, found: Comparison) -> Row:
    """Return the row of a comparison."""
    values: Row = {
        "workload": workload.name,
        "system": found.system,
        "fault": found.fault,
        "ratio": f"{found.ratio(workload):.3g}" if found.own_s and not found.fault else "",
        "pairs": str(len(found.own_s)),
        "rounds": str(found.rounds),
        "loop_s": " ".join(f"{value:.4g}" for value in found.loop_s),
        "own_s": " ".join(f"{value:.4g}" for value in found.own_s),
        "start_s": f"{found.start_s:.2f}",
        "first_s": f"{found.first_s:.3g}",
        "momentum": str(found.facts.get("momentum", "")),
        "loss": f"{found.loss:.6f}",
        "expected": f"{found.expected:.6f}",
        "executor": str(found.facts.get("executor", "")),
        "clients": str(found.facts.get("clients") or workload.clients),
        "load": f"{found.load:.2f}",
        "steal": found.steal,
        "versions": json.dumps(found.facts.get("versions", {})),
    }
    return values | machine_columns()


def interpreter(system: System, folder: Path) -> str:
    """Return the interpreter of a system, whose environment is made if needed."""
    if system.environment is None:
        return sys.executable
    return str(environments.make(system.name, system.environment, folder))


def run_workload(workload: Workload, systems: Sequence[System], options: argparse.Namespace) -> None:
    """Compare the systems on a workload, and write a row for each as it comes."""
    print(f"{workload.name}: {workload.source}", flush=True)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        write_files(workload, folder)
        expected = expected_losses(workload, sys.executable, folder)
        loop = stack.enter_context(Side(System(LOOP, "loop_rounds.py"), sys.executable, workload, folder))
        loop.time_rounds(2)
        for system in systems:
            found = Comparison(system.name, system.refusal(workload))
            if not found.fault:
                try:
                    python = interpreter(system, options.environments)
                    limits = {"pairs": options.pairs, "turn_s": options.turn_seconds, "most_s": options.seconds}
                    found = compare(system, python, loop, workload, folder, expected, **limits)
                except environments.Missing as error:
                    found.fault = str(error)
            merge_rows(options.out / TABLE, [row(workload, found)], ["workload", "system"])
            said = found.fault or f"{found.ratio(workload):.2f} times the loop"
            print(f"{workload.name}, {system.name}: {said}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; return 1 if a system failed or trained something else."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__.splitlines()[0])
    names = [workload.name for workload in WORKLOADS]
    systems = [system.name for system in SYSTEMS]
    parser.add_argument("--workloads", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--systems", nargs="+", choices=systems, default=systems, metavar="NAME", help=", ".join(systems)
    )
    parser.add_argument("--pairs", type=int, default=5, help="turns of each system and of the loop (default: 5)")
    parser.add_argument("--turn-seconds", type=float, default=0.5, help="length of a turn of the loop (default: 0.5)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="no turn of a system begins after these (default: 60)"
    )
    parser.add_argument(
        "--environments", type=Path, default=ROOT / ".venv" / "peers", help="folder of the peers' environments"
    )
    parser.add_argument("--out", type=Path, default=device_folder(), help="folder for the table and its figure")
    options = parser.parse_args(arguments)
    chosen = [system for system in SYSTEMS if system.name in options.systems]
    for workload in WORKLOADS:
        if workload.name in options.workloads:
            run_workload(workload, chosen, options)
    rows = read_rows(options.out / TABLE)
    draw(rows, options.out / "peers_rounds.png")
    allowed = {system.refusal(workload) for system in SYSTEMS for workload in WORKLOADS} | {""}
    return int(any(row["fault"] not in allowed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
