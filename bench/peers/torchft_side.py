"""The peer's side of bench.peers.torchft_diloco: torchft's own DiLoCo fragments, for all clients in one process.

    PEER/bin/python bench/peers/torchft_side.py FILE.npz CASES OUT.npz

FILE.npz holds the data, the start weights and `ids` [rounds, clients, local_steps, batch]. A stand-in for torchft's
manager averages the clients' pseudogradients once every client has handed over its own. OUT.npz gets the global model
[n_params] of each case after the last round, and `versions`.
"""

from __future__ import annotations

import copy
import json
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from flower_side import make_module
from torch import nn


class Manager:
    """Averages what the clients hand over, in the order in which each hands it over."""

    def __init__(self, clients: int) -> None:
        self._clients, self._pending = clients, [[] for _ in range(clients)]  # type: ignore[var-annotated]
        self.client = 0

    def register_state_dict_fn(self, *_: Any) -> None:
        """Take no part in torchft's recovery."""

    def should_commit(self) -> bool:
        """Return True: no client fails."""
        return True

    def allreduce(self, tensor: torch.Tensor, should_quantize: bool = False) -> Manager:
        """Take a tensor of the current client; `wait` replaces those of all clients by their mean."""
        self._pending[self.client].append(tensor)
        return self

    def wait(self) -> None:
        """Average everything that all clients have handed over."""
        for tensors in zip(*self._pending, strict=True):
            mean = torch.stack(tensors).mean(dim=0)
            for tensor in tensors:
                tensor.copy_(mean)
        self._pending = [[] for _ in range(self._clients)]


def train(given: dict[str, Any], case: dict[str, Any], dtype: torch.dtype) -> Any:
    """Return the flat global model of a case after all rounds."""
    from torchft.local_sgd import _StreamingDiLoCoFragment

    inputs, targets = torch.from_numpy(given["inputs"]).to(dtype), torch.from_numpy(given["targets"])
    module = make_module().to(dtype)
    nn.utils.vector_to_parameters(torch.from_numpy(given["start"]).to(dtype, copy=True), module.parameters())
    rounds, clients = given["ids"].shape[:2]
    manager = Manager(clients)
    modules = [copy.deepcopy(module) for _ in range(clients)]
    inner = [torch.optim.AdamW(one.parameters(), **case["inner"]) for one in modules]
    fragments = []
    for one, optimizer in zip(modules, inner, strict=True):
        own = dict(one.named_parameters())
        parts = [nn.ParameterList([own[name] for name in names]) for names in case["fragments"]]
        outer = [torch.optim.SGD(part.parameters(), nesterov=True, **case["outer"]) for part in parts]
        fragments.append(
            [
                _StreamingDiLoCoFragment(
                    manager, part, number, 0, optimizer, step, sync_every=1, backup_device=torch.device("cpu")
                )
                for number, (part, step) in enumerate(zip(parts, outer, strict=True))
            ]
        )
    for each in fragments:
        for fragment in each:
            fragment.save_parameters()
    for number in range(rounds):
        for client, (one, optimizer) in enumerate(zip(modules, inner, strict=True)):
            for batch in torch.from_numpy(given["ids"][number, client]):
                optimizer.zero_grad()
                nn.functional.cross_entropy(one(inputs[batch]), targets[batch]).backward()
                optimizer.step()
        turn = number % len(case["fragments"])
        for manager.client, each in enumerate(fragments):
            each[turn].prepare_sync()
        for each in fragments:
            each[turn].perform_sync()
    # the last value that the outer steps gave each part
    values = {}
    for number, names in enumerate(case["fragments"]):
        values |= zip(names, fragments[0][number].original_parameters.values(), strict=True)
    return np.concatenate([values[name].numpy().ravel() for name, _ in module.named_parameters()])


def main(file: str, cases: str, out: str) -> None:
    """Train every case in both precisions."""
    torch.set_num_threads(1)
    given = dict(np.load(file))
    found = {
        f"{case['name']}, {precision}": train(given, case, dtype)
        for case in json.loads(cases)
        for precision, dtype in (("fp64", torch.float64), ("fp32", torch.float32))
    }
    versions = {"torchft": version("torchft"), "peer_torch": torch.__version__, "peer_numpy": np.__version__}
    np.savez(out, versions=np.array(json.dumps(versions)), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
