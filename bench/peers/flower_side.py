"""The peer's side of bench.peers.flower: clients in plain torch, the server by Flower's own strategies.

    PEER/bin/python bench/peers/flower_side.py FILE.npz CASES OUT.npz

FILE.npz holds the data, the start weights, and for each round r the clients' samples, `ids_r` [clients, local_steps,
batch], and how many each owns, `sizes_r` [clients]. CASES is JSON of the cases. OUT.npz gets the flat global model
[n_params] of each case after the last round, and `versions`. Needs flwr and torch, and nothing of fastlocal.
"""

from __future__ import annotations

import json
import logging
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

FEATURES, CLASSES = 20, 10
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
"""Settings of each client's torch.optim.SGD."""


def make_module() -> nn.Module:
    """Return the module that both sides train."""
    return nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def train_client(weights: list[Any], inputs: torch.Tensor, targets: torch.Tensor, ids: torch.Tensor) -> list[Any]:
    """Return the weights after one SGD step for each row of `ids` [local_steps, batch]."""
    module = make_module().to(inputs.dtype)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(value))
    optimizer = torch.optim.SGD(module.parameters(), **SGD)
    for batch in ids:
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    return [parameter.detach().numpy() for parameter in module.parameters()]


def train(given: dict[str, Any], case: dict[str, Any], dtype: torch.dtype) -> Any:
    """Return the flat global model of a case after all rounds."""
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server import strategy

    inputs, targets = torch.from_numpy(given["inputs"]).to(dtype), torch.from_numpy(given["targets"])
    module = make_module().to(dtype)
    nn.utils.vector_to_parameters(torch.from_numpy(given["start"]).to(dtype), module.parameters())
    weights = [parameter.detach().numpy() for parameter in module.parameters()]
    server = getattr(strategy, case["strategy"])(initial_parameters=ndarrays_to_parameters(weights), **case["settings"])
    for number in range(1, int(given["rounds"]) + 1):
        results = [
            (None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters(trained), int(size), {}))
            for ids, size in zip(given[f"ids_{number}"], given[f"sizes_{number}"], strict=True)
            for trained in [train_client(weights, inputs, targets, torch.from_numpy(ids))]
        ]
        parameters, _ = server.aggregate_fit(number + case["round_offset"], results, [])
        weights = [value.astype(weights[0].dtype) for value in parameters_to_ndarrays(parameters)]
    return np.concatenate([value.ravel() for value in weights])


def main(file: str, cases: str, out: str) -> None:
    """Train every case in both precisions."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # flwr warns of metrics that nobody asked for
    given = dict(np.load(file))
    found = {
        f"{case['name']}, {precision}": train(given, case, dtype)
        for case in json.loads(cases)
        for precision, dtype in (("fp64", torch.float64), ("fp32", torch.float32))
    }
    versions = {"flwr": version("flwr"), "peer_torch": torch.__version__, "peer_numpy": np.__version__}
    np.savez(out, versions=np.array(json.dumps(versions)), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
