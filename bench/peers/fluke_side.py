"""The peer's side of bench.peers.fluke_algorithms: fluke's own clients and servers on given batches.

    PEER/bin/python bench/peers/fluke_side.py FILE.npz CASES OUT.npz

FILE.npz is that of bench.peers.flower, with the clients of each round r, `clients_r`, and how many samples each of the
population owns, `sizes`.
OUT.npz gets the flat global model [n_params] of each case after the last round, and `versions`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from flower_side import make_module
from torch import nn


def make_loader(size: int, inputs: torch.Tensor, targets: torch.Tensor) -> Any:
    """Return a client's loader whose batches of a round are those of its `ids` [batches, batch]."""
    from fluke.data import FastDataLoader

    class Batches(FastDataLoader):
        def __init__(self) -> None:
            self.size, self.ids, self.n_batches = size, torch.empty(0), 0

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for batch in self.ids:
                yield inputs[batch], targets[batch]

        def __len__(self) -> int:
            return len(self.ids)

    return Batches()


def train(given: dict[str, Any], case: dict[str, Any], dtype: torch.dtype) -> Any:
    """Return the flat global model of a case after all rounds."""
    from fluke.config import OptimizerConfigurator

    module = importlib.import_module(f"fluke.algorithms.{case['module']}")
    client_class, server_class = (getattr(module, case["class"] + kind, None) for kind in ("Client", "Server"))
    if server_class is None:
        from fluke.server import Server as server_class
    inputs, targets = torch.from_numpy(given["inputs"]).to(dtype), torch.from_numpy(given["targets"])
    model = make_module().to(dtype)
    nn.utils.vector_to_parameters(torch.from_numpy(given["start"]).to(dtype, copy=True), model.parameters())
    optimizer = OptimizerConfigurator({"name": "SGD", "lr": case["rate"]})
    loaders = [make_loader(int(size), inputs, targets) for size in given["sizes"]]
    clients = [
        client_class(
            index=index, train_set=loader, test_set=None, optimizer_cfg=optimizer, loss_fn=nn.CrossEntropyLoss(),
            local_epochs=1, clipping=0, **case["settings"],
        )
        for index, loader in enumerate(loaders)
    ]  # fmt: skip
    server = server_class(model=model, test_set=None, clients=clients, weighted=True)
    for client in clients:
        client.set_channel(server.channel)
    for number in range(1, int(given["rounds"]) + 1):
        eligible = [clients[index] for index in given[f"clients_{number}"]]
        for client, ids in zip(eligible, given[f"ids_{number}"], strict=True):
            client.train_set.ids = torch.from_numpy(ids)
            client.train_set.n_batches = len(ids)
        server.broadcast_model(eligible)
        for client in eligible:
            client.local_update(number)
        server.aggregate(eligible, server.receive_client_models(eligible, state_dict=False))
    return nn.utils.parameters_to_vector(server.model.parameters()).detach().numpy()


def main(file: str, cases: str, out: str) -> None:
    """Train every case in both precisions."""
    torch.set_num_threads(1)
    given = dict(np.load(file))
    found = {
        f"{case['name']}, {precision}": train(given, case, dtype)
        for case in json.loads(cases)
        for precision, dtype in (("fp64", torch.float64), ("fp32", torch.float32))
    }
    versions = {"fluke": version("fluke-fl"), "peer_torch": torch.__version__, "peer_numpy": np.__version__}
    np.savez(out, versions=np.array(json.dumps(versions)), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
