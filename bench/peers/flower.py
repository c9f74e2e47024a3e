"""Flower: do its own strategies give the same global model from the same weights, partition, cohorts and batches?

    python3 -m venv PEER && PEER/bin/pip install flwr torch
    python -m bench.peers.flower --peer-python PEER/bin/python

fastlocal trains ROUNDS rounds, and writes the start weights, and the clients and sample numbers of each round.
bench/peers/flower_side.py, in the peer's environment, trains each client by a plain module and torch.optim.SGD on these
samples, and leaves the mean and the server's step to `aggregate_fit` of flwr.server.strategy. Rows go to
peers_flower.csv. The exit status is 1 if a case that should be equal differs by more than LIMIT, or one that should
differ does not.

Flower starts the second moment at 0 (--server-accumulator 0). Its FedAdam corrects the bias with the exponent
round + 1, and does not scale tau: no switch of ours does that. Three cases show what is left: with a round number so
great that the correction is 1, with the number of the round before and a tau of next to nothing, and as it comes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastlocal
from bench.common import Row, device_folder, machine_columns, write_rows
from bench.peers import flower_side
from fastlocal.data.client_streams import ClientStreams
from fastlocal.schedule.cohort import CohortSampler
from fastlocal.schedule.local_work import LocalWork

ROUNDS, POPULATION, COHORT, BATCH, LOCAL_STEPS, SAMPLES, SEED = 3, 40, 10, 8, 6, 1200, 7
LIMIT = 1e-5
FAR_ROUND = 1_000_000
"""Round number from which on beta^round is 0."""
ADAM = {"server_lr": 0.02, "server_beta1": 0.9, "server_beta2": 0.99, "server_tau": 1e-3, "server_accumulator": 0.0}


def _adaptive(**changes: Any) -> dict[str, Any]:
    """Return the settings of Flower's strategy for our settings ADAM."""
    return {"eta": 0.02, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3} | changes


def _case(
    name: str,
    strategy: str,
    settings: dict[str, Any],
    optimizer: str,
    own: dict[str, Any],
    *,
    round_offset: int = 0,
    equal: bool = True,
) -> dict[str, Any]:
    """Return a case: Flower's strategy with its settings, and our server optimizer with its own."""
    own = {"server_optimizer": optimizer} | own
    values = {"name": name, "strategy": strategy, "settings": settings, "own": own}
    return values | {"round_offset": round_offset, "equal": equal}


CORRECTED = ADAM | {"server_bias_correction": True}
CASES = (
    _case("FedAvg", "FedAvg", {}, "none", {}),
    _case(
        "FedAvgM",
        "FedAvgM",
        {"server_learning_rate": 0.8, "server_momentum": 0.9},
        "momentum",
        {"server_lr": 0.8, "server_momentum": 0.9},
    ),
    _case(
        "FedAdagrad",
        "FedAdagrad",
        {"eta": 0.02, "tau": 1e-3},
        "adagrad",
        {"server_lr": 0.02, "server_tau": 1e-3, "server_accumulator": 0.0},
    ),
    _case("FedYogi", "FedYogi", _adaptive(), "yogi", ADAM),
    _case("FedAdam, correction of 1", "FedAdam", _adaptive(), "adam", ADAM, round_offset=FAR_ROUND),
    _case(
        "FedAdam, exponent of the round, no tau",
        "FedAdam",
        _adaptive(tau=1e-12),
        "adam",
        CORRECTED | {"server_tau": 1e-12},
        round_offset=-1,
    ),
    _case("FedAdam as it comes", "FedAdam", _adaptive(), "adam", CORRECTED, equal=False),
)


def make_data() -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs [SAMPLES, features] fp64 around a centre for each class, and labels."""
    generator = torch.Generator().manual_seed(SEED)
    targets = torch.randint(0, flower_side.CLASSES, (SAMPLES,), generator=generator)
    centres = torch.randn(flower_side.CLASSES, flower_side.FEATURES, generator=generator, dtype=torch.float64)
    noise = torch.randn(SAMPLES, flower_side.FEATURES, generator=generator, dtype=torch.float64)
    return centres[targets] + noise, targets


def flat(module: torch.nn.Module) -> Any:
    """Return the parameters of a module, [n_params]."""
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach().numpy()


def export(
    path: Path, data: tuple[torch.Tensor, torch.Tensor], parts: fastlocal.partition.Partition, start: Any
) -> None:
    """Write what the peer trains on."""
    sampler = CohortSampler(seed=SEED, population=POPULATION, clients=COHORT)
    work = LocalWork(torch.tensor(LOCAL_STEPS).expand(POPULATION), 0.0, SEED, equal=True)
    streams = ClientStreams(parts, sampler, batch_size=BATCH, work=work, seed=SEED, restart=True)
    arrays = {"inputs": data[0].numpy(), "targets": data[1].numpy(), "start": start, "rounds": np.array(ROUNDS)}
    arrays["sizes"] = parts.sizes
    for number in range(1, ROUNDS + 1):
        first_step = (number - 1) * LOCAL_STEPS
        ids = streams.sample_ids(first_step, LOCAL_STEPS, range(COHORT))  # [local_steps, clients, batch]
        arrays[f"ids_{number}"] = ids.transpose(0, 1).contiguous().numpy()
        arrays[f"clients_{number}"] = streams.cohort(first_step).ids.numpy()
        arrays[f"sizes_{number}"] = parts.sizes[arrays[f"clients_{number}"]]
    np.savez(path, **arrays)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the cases; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.flower", description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="interpreter of an environment with flwr and torch")
    parser.add_argument("--out", type=Path, default=device_folder(), help="folder for peers_flower.csv")
    options = parser.parse_args(arguments)
    data = make_data()
    parts = fastlocal.partition.dirichlet(data[1], clients=POPULATION, alpha=0.3, seed=SEED, min_client_size=2)
    torch.manual_seed(SEED)
    module = flower_side.make_module().double()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(folder / "given.npz", data, parts, flat(module))
        command = [options.peer_python, flower_side.__file__, str(folder / "given.npz")]
        subprocess.run([*command, json.dumps(CASES), str(folder / "peer.npz")], check=True)
        peer = dict(np.load(folder / "peer.npz"))
        rows, failed = [], False
        machine = json.loads(str(peer.pop("versions"))) | machine_columns()
        for case in CASES:
            for precision in ("fp64", "fp32"):
                row = compare(case, precision, module, data, parts, peer[f"{case['name']}, {precision}"], folder)
                failed = failed or (float(row["max_abs_difference"]) <= LIMIT) != case["equal"]
                rows.append(row | machine)
                print(f"{row['case']}, {precision}: {row['max_abs_difference']} of {row['max_abs_change']}", flush=True)
    write_rows(options.out / "peers_flower.csv", rows)
    return int(failed)


def compare(
    case: dict[str, Any],
    precision: str,
    module: torch.nn.Module,
    data: tuple[torch.Tensor, torch.Tensor],
    parts: fastlocal.partition.Partition,
    theirs: Any,
    folder: Path,
    sgd: Mapping[str, float] = flower_side.SGD,
) -> Row:
    """Train a case by fastlocal, and return the table row beside the peer's global model, [n_params]."""
    dtype = {"fp64": torch.float64, "fp32": torch.float32}[precision]
    inputs, targets = data[0].to(dtype), data[1]
    run = fastlocal.train(
        module,
        (inputs, targets),
        (inputs[:100], targets[:100]),
        partition=parts,
        clients=COHORT,
        local_steps=LOCAL_STEPS,
        batch_size=BATCH,
        rounds=ROUNDS,
        lr=sgd["lr"],
        momentum=sgd["momentum"],
        weight_decay=sgd["weight_decay"],
        eval_every=ROUNDS,
        seed=SEED,
        precision=precision,
        group_weight=False,
        executor="stacked",
        directory=folder / f"{case['name']} {precision}",
        progress=False,
        **case["own"],
    )
    ours = flat(run.model)
    return {
        "case": case["name"],
        "strategy": case["strategy"],
        "settings": json.dumps(case["settings"]),
        "fastlocal": json.dumps(case["own"]),
        "precision": precision,
        "rounds": str(ROUNDS),
        "population": str(POPULATION),
        "cohort": str(COHORT),
        "max_abs_difference": f"{np.abs(ours.astype(np.float64) - theirs).max():.1e}",
        "max_abs_change": f"{np.abs(theirs - flat(module)).max():.2f}",
        "should_be_equal": str(int(case["equal"])),
    }


if __name__ == "__main__":
    sys.exit(main())
