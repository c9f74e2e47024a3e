"""pfl-research: its SimulatedBackend and FederatedAveraging, clients in turn, an optimizer anew for each."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
import torch.nn.functional as F
from nets import torch_module
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from protocol import Turns, read_workload
from torch_client import check_loss


class Model(torch.nn.Module):
    """A module with the loss and the metrics that pfl asks for."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy of a batch."""
        return F.cross_entropy(self.net(inputs), targets)

    @torch.no_grad()
    def metrics(self, inputs: torch.Tensor, targets: torch.Tensor) -> dict[str, Any]:
        """Return what pfl evaluates before its first round."""
        return {"loss": Weighted(float(self.loss(inputs, targets)) * len(targets), len(targets))}


class InTurns(TrainingProcessCallback):
    """Ends each round, and waits until the next is wanted."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """End a round."""
        self.turns.end_round()
        self.turns.next_round()
        return False, Metrics()


def main() -> None:
    """Train until nobody asks any more."""
    turns, work = Turns(), read_workload()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    places = 0

    def next_place() -> int:
        nonlocal places
        places += 1
        return places - 1

    def client_data(place: int) -> Dataset:
        inputs, targets = work.samples(*divmod(place, work.clients))
        flat = (torch.from_numpy(values).flatten(0, 1) for values in (inputs, targets))
        return Dataset(tuple(flat), user_id=str(place))

    net = torch_module(work.net, work.start)
    model = Model(net)
    local = functools.partial(torch.optim.SGD, momentum=work.momentum, weight_decay=work.weight_decay)
    turns.ready(lambda: check_loss(work, net), momentum="reset", packages=("pfl", "torch"))
    turns.next_round()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=10**6,
            evaluation_frequency=10**9,
            train_cohort_size=work.clients,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=FederatedDataset(client_data, next_place), val_data=None),
        model=PyTorchModel(model, local, torch.optim.SGD(model.parameters(), lr=1.0)),
        model_train_params=NNTrainHyperParams(
            local_batch_size=work.batch, local_num_epochs=1, local_learning_rate=work.lr, local_num_steps=None
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[InTurns(turns)],
        send_metrics_to_platform=False,
    )


if __name__ == "__main__":
    main()
