"""fluke: do its SCAFFOLD, FedProx and FedNova give the same global model from the same start, cohorts and batches?

    python3 -m venv PEER && PEER/bin/pip install fluke-fl torch
    python -m bench.peers.fluke_algorithms --peer-python PEER/bin/python

fastlocal trains three rounds, and writes the start weights, and the clients and sample numbers of each round.
bench/peers/fluke_side.py, in the peer's environment, hands each round's batches to fluke's own clients, whose models
its own server takes. Rows go to peers_fluke.csv. The exit status is 1 if a case differs by more than LIMIT.

Clients have no momentum, because fluke's keep their optimizer where ours start anew in a cohort.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastlocal
from bench.common import device_folder, machine_columns, write_rows
from bench.peers import flower_side
from bench.peers.flower import LIMIT, POPULATION, SEED, compare, export, flat, make_data

CASES: tuple[dict[str, Any], ...] = (
    {"name": "SCAFFOLD", "module": "scaffold", "settings": {}, "own": {"algorithm": "scaffold"}},
    {
        "name": "FedProx",
        "module": "fedprox",
        "settings": {"mu": 0.3},
        "own": {"algorithm": "fedprox", "prox_mu": 0.3},
    },
    {"name": "FedNova", "module": "fednova", "settings": {}, "own": {"algorithm": "fednova"}},
)
SGD = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the cases; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.fluke_algorithms", description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="interpreter of an environment with fluke-fl and torch")
    parser.add_argument("--out", type=Path, default=device_folder(), help="folder for peers_fluke.csv")
    options = parser.parse_args(arguments)
    data = make_data()
    parts = fastlocal.partition.dirichlet(data[1], clients=POPULATION, alpha=0.3, seed=SEED, min_client_size=2)
    torch.manual_seed(SEED)
    module = flower_side.make_module().double()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(folder / "given.npz", data, parts, flat(module))
        command = [options.peer_python, str(Path(__file__).with_name("fluke_side.py")), str(folder / "given.npz")]
        alike = {"rate": SGD["lr"], "equal": True}
        cases = [case | alike | {"class": case["name"], "strategy": case["name"]} for case in CASES]
        subprocess.run([*command, json.dumps(cases), str(folder / "peer.npz")], check=True)
        peer = dict(np.load(folder / "peer.npz"))
        machine = json.loads(str(peer.pop("versions"))) | machine_columns()
        rows = []
        for case in cases:
            for precision in ("fp64", "fp32"):
                theirs = peer[f"{case['name']}, {precision}"]
                row = compare(case, precision, module, data, parts, theirs, folder, SGD)
                rows.append(row | machine)
                print(f"{row['case']}, {precision}: {row['max_abs_difference']} of {row['max_abs_change']}", flush=True)
    write_rows(options.out / "peers_fluke.csv", rows)
    return int(any(float(str(row["max_abs_difference"])) > LIMIT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
