"""The server's part of a round: the mean of the clients, their state, and the step to the next global model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..aggregation.buffer_mean import BufferMean
from ..aggregation.global_model import GlobalModel
from ..distributed.world import World
from ..models.own_tensors import tensors_of
from ..params.client_stack import MOMENTS, ClientRows, ClientStore
from ..telemetry.trace import span
from .algorithm_rounds import AlgorithmRounds
from .fragments import Fragments
from .timers import Timers

ClientState = Literal["keep", "reset", "average"]


@dataclass
class Server:
    """The server of one process; all processes take the same steps.

    Attributes:
        world: The processes of the run.
        global_model: The model that clients start from.
        fragments: The parts of the parameters, which rounds average in turns: one, of all, or several.
        mean_state: Averages the buffers that a forward pass changes, and with client_state average the momenta; None if
            there are none.
        client_state: How clients begin a round: keep, reset or average.
        algorithm: The algorithm of the run.
        changing: Names of the buffers that a forward pass changes.
    """

    world: World
    global_model: GlobalModel
    fragments: Fragments
    mean_state: BufferMean | None
    client_state: ClientState
    algorithm: AlgorithmRounds
    changing: tuple[str, ...]

    def __post_init__(self) -> None:
        needed = self.fragments.of(0).optimizer is not None or self.algorithm.steps_on_server
        self._start = torch.empty_like(self.global_model.flat_params) if needed else None

    def prepare(self, store: ClientStore) -> None:
        """Give the clients of a round the global model's buffers, if they keep none."""
        if self.client_state == "reset" and self.changing:
            own = tensors_of(self.global_model.module)
            store.fill({name: own[name].detach() for name in self.changing})

    def average(
        self,
        round_number: int,
        averages: int,
        store: ClientStore,
        rows: ClientRows,
        weights: Tensor | None,
        *,
        total: float,
        weight: float | None = None,
        client_rate: float,
        timers: Timers,
    ) -> None:
        """Average the clients of a round, and replace the global model.

        Args:
            round_number: Number of the round, for error messages.
            averages: Number of averages so far.
            store: State of this process's clients.
            rows: Rows of the store that trained in the round.
            weights: float64 [rows], or None for equal weights.
            total: Weight of all clients of the round.
            weight: Sum of the weights with which the parameters were added, if that is not `total`.
            client_rate: Rate of the clients in the round's first step.
            timers: Takes the time of the average.
        """
        fragment = self.fragments.of(averages)
        flat_params = self.global_model.flat_params[fragment.columns]
        start = None if self._start is None else self._start[fragment.columns]
        if start is not None:
            start.copy_(flat_params)  # the mean may overwrite it
        with self.world.averaging(f"the average of round {round_number}"), span("average"):
            with timers.time_average(flat_params.device):
                fragment.aggregator.start(flat_params, total, weight)
                mean = fragment.aggregator.finish()
            self.world.await_device(flat_params.device)
        buffers: dict[str, Tensor] = {}
        if self.mean_state is not None:
            averaging = self.world.averaging(f"the average of the buffers of round {round_number}")
            buffers = self.mean_state(store, rows, weights, total, averaging)
            # untrained parameters too start every round from their average
            shared = buffers if self.client_state == "average" else self.global_model.shared
            store.fill({name: buffers[name] for name in shared})
            buffers = {name: value for name, value in buffers.items() if name not in MOMENTS}
        with span("server"):
            if start is not None and self.algorithm.steps_on_server:
                with self.world.averaging(f"the sums of round {round_number}"):
                    mean = self.algorithm.server(start, mean)
            if start is not None and fragment.optimizer is not None:
                mean = fragment.optimizer.step(start, mean, client_rate)
            self.global_model.replace(mean, buffers, fragment.columns)
