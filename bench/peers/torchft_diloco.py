"""torchft: do its DiLoCo and Streaming DiLoCo give the same global model from the same start and batches?

    python3 -m venv PEER && PEER/bin/pip install torchft torch
    python -m bench.peers.torchft_diloco --peer-python PEER/bin/python

AdamW clients whose moments stay with them, and Nesterov's step of the server, on the whole model and on two fragments
in turns. fastlocal trains, and writes the start weights and the samples of each client; bench/peers/torchft_side.py, in
the peer's environment, trains as many plain modules and leaves the outer steps to torchft's fragments. Rows go to
peers_torchft.csv. The exit status is 1 if a case differs by more than LIMIT.
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
from bench.common import Row, device_folder, machine_columns, write_rows
from bench.peers import flower_side
from bench.peers.flower import LIMIT, SAMPLES, SEED, flat, make_data

ROUNDS, CLIENTS, BATCH, LOCAL_STEPS = 6, 4, 8, 5
INNER = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}
OUTER = {"lr": 0.7, "momentum": 0.9}
FIRST, REST = "0.weight", ["0.bias", "2.weight", "2.bias"]
CASES: tuple[dict[str, Any], ...] = (
    {"name": "DiLoCo", "fragments": [[FIRST, *REST]], "inner": INNER, "outer": OUTER},
    {"name": "Streaming DiLoCo, two fragments", "fragments": [[FIRST], REST], "inner": INNER, "outer": OUTER},
)
"""Fragments are groups of the parameters of flower_side.make_module, split as fastlocal splits them."""


def samples_of_rounds() -> np.ndarray[Any, Any]:
    """Return the samples of the reference's order, [rounds, clients, local_steps, batch]."""
    per_epoch = SAMPLES // (CLIENTS * BATCH)
    ids = np.empty((ROUNDS, CLIENTS, LOCAL_STEPS, BATCH), dtype=np.int64)
    for step in range(ROUNDS * LOCAL_STEPS):
        epoch, at = divmod(step, per_epoch)
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(SEED + epoch)).numpy()
        dealt = order[at * CLIENTS * BATCH :][: CLIENTS * BATCH].reshape(CLIENTS, BATCH)
        ids[step // LOCAL_STEPS, :, step % LOCAL_STEPS] = dealt
    return ids


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the cases; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.torchft_diloco", description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="interpreter of an environment with torchft and torch")
    parser.add_argument("--out", type=Path, default=device_folder(), help="folder for peers_torchft.csv")
    options = parser.parse_args(arguments)
    inputs, targets = make_data()
    torch.manual_seed(SEED)
    module = flower_side.make_module().double()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arrays = {"inputs": inputs.numpy(), "targets": targets.numpy(), "start": flat(module)}
        np.savez(folder / "given.npz", ids=samples_of_rounds(), **arrays)
        side = str(Path(__file__).with_name("torchft_side.py"))
        command = [options.peer_python, side, str(folder / "given.npz"), json.dumps(CASES), str(folder / "peer.npz")]
        subprocess.run(command, check=True)
        peer = dict(np.load(folder / "peer.npz"))
        machine = json.loads(str(peer.pop("versions"))) | machine_columns()
        rows = []
        for case in CASES:
            for precision, dtype in (("fp64", torch.float64), ("fp32", torch.float32)):
                run = fastlocal.train(
                    module,
                    (inputs.to(dtype), targets),
                    (inputs[:100].to(dtype), targets[:100]),
                    clients=CLIENTS,
                    local_steps=LOCAL_STEPS,
                    batch_size=BATCH,
                    rounds=ROUNDS,
                    lr=INNER["lr"],
                    weight_decay=INNER["weight_decay"],
                    client_optimizer="adamw",
                    beta1=INNER["betas"][0],  # type: ignore[index]
                    beta2=INNER["betas"][1],  # type: ignore[index]
                    server_optimizer="nesterov",
                    server_lr=OUTER["lr"],
                    server_momentum=OUTER["momentum"],
                    sync_fragments=len(case["fragments"]),
                    eval_every=ROUNDS,
                    seed=SEED,
                    precision=precision,
                    executor="stacked",
                    directory=folder / f"{case['name']} {precision}",
                    progress=False,
                )
                ours, theirs = flat(run.model), peer[f"{case['name']}, {precision}"]
                row: Row = {
                    "case": case["name"],
                    "precision": precision,
                    "rounds": str(ROUNDS),
                    "max_abs_difference": f"{np.abs(ours - theirs).max():.1e}",
                    "max_abs_change": f"{np.abs(ours - flat(module)).max():.2f}",
                }
                rows.append(row | machine)
                difference = f"{row['max_abs_difference']} of {row['max_abs_change']}"
                print(f"{case['name']}, {precision}: {difference}", flush=True)
    write_rows(options.out / "peers_torchft.csv", rows)
    return int(any(float(str(row["max_abs_difference"])) > LIMIT for row in rows))


if __name__ == "__main__":
    sys.exit(main())
