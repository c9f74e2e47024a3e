"""Flower's Message API on its Ray simulation: two workers of a torch thread each, a new SGD for every message."""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_DEDUP_LOGS="0", RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1")
os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")])  # for Ray's workers

from flower_client import client, workload
from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from nets import torch_module
from protocol import Turns
from torch_client import check_loss

server = ServerApp()


class InTurns(FedAvg):
    """FedAvg whose cohorts are those that are written down, and whose rounds begin when they are wanted."""

    def __init__(self, turns: Turns, **settings: Any) -> None:
        super().__init__(**settings)
        self.turns, self.arrays = turns, ArrayRecord()

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: Any, grid: Grid) -> Any:
        """Tell each client of the cohort its place in it."""
        for place, message in enumerate(super().configure_train(server_round, arrays, config, grid)):
            told = MetricRecord({"number": server_round - 1, "place": place})
            message.content = RecordDict({**message.content, "place": told})
            yield message

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """Take the mean, and end the round."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.arrays = arrays
        self.turns.end_round()
        self.turns.next_round()
        return arrays, metrics


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """Train until nobody asks any more."""
    work = workload()
    share = work.clients / work.population
    strategy = InTurns(
        TURNS, fraction_train=share, fraction_evaluate=0.0, min_train_nodes=work.clients,
        min_available_nodes=work.population,
    )  # fmt: skip

    def loss() -> float:
        module = torch_module(work.net)
        module.load_state_dict(strategy.arrays.to_torch_state_dict())
        return check_loss(work, module)

    TURNS.ready(loss, momentum="reset", packages=("flwr", "ray", "torch"))
    TURNS.next_round()
    strategy.start(
        grid=grid, initial_arrays=ArrayRecord(torch_module(work.net, work.start).state_dict()), num_rounds=10**6
    )


if __name__ == "__main__":
    TURNS = Turns()
    os.environ.update(PEER_FOLDER=sys.argv[1], PEER_FACTS=sys.argv[2])  # for Ray's workers
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app=server, client_app=client, num_supernodes=workload().population, backend_config=resources)
