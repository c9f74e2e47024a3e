"""Snapshots of a training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checkpoint.resharding import client_rows, row_name
from ..checkpoint.state_file import State
from ..params.client_stack import SavedClients
from ..schedule.cursor import TrainingCursor
from .algorithm_checks import describe

if TYPE_CHECKING:
    from .loop import Loop

START_PREFIX = "start of clients "
"""Prefix of the values of clients whose rows are in no file."""


def take_snapshot(loop: Loop) -> State:
    """Copy the state of this process's clients and the state that all processes share to the CPU."""
    device = loop.global_model.flat_params.device
    tensors = loop.global_model.tensors()
    if loop.evaluator.module_seed is not None:  # else every draw is a function of seed, client and step
        tensors["torch random state"] = torch.get_rng_state()
        if device.type == "cuda":
            tensors["cuda random state"] = torch.cuda.get_rng_state(device)
    tensors |= {f"server {name}": value for name, value in loop.server.fragments.optimizer_state().items()}
    tensors |= loop.server.algorithm.tensors()
    saved = loop.client_store.save()
    tensors |= {row_name(name): rows for name, rows in saved.rows.items()}
    tensors |= {START_PREFIX + name: value for name, value in saved.shared.items()}
    if loop.cursor.so_far.done:
        tensors |= {f"sum {name}": value for name, value in _partial_sums(loop).items()}
        tensors |= {f"losses {index}": losses for index, losses in enumerate(loop.cursor.so_far.losses)}
    tensors |= {f"feedback {name}": value for name, value in loop.server.fragments.error_feedback().items()}
    clients = loop.planner.clients
    position = loop.cursor.state_dict()
    if loop.planner.kept:
        ids = loop.planner.streams.cohort(loop.cursor.first_step).ids
        # the clients of each finished chunk, for a continuation by another number of processes
        position["so_far"]["clients"] = [ids[list(rows)].tolist() for rows in loop.cursor.so_far.done]
    metadata = {
        "config": loop.config,
        "position": position,
        "averaged": loop.global_model.state_dict(),
        "clients": [clients.start, clients.stop],
        "ranks": loop.world.size,
        "logged": loop.logger.state() | ({} if loop.steps is None else loop.steps.state()),
        "ended": None,
        "algorithm": describe(loop.server.algorithm.algorithm, loop.server.algorithm.state),
    }
    if saved.about is not None:
        metadata["client_store"] = saved.about
    return State(metadata, {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()})


def restore_snapshot(loop: Loop, state: State) -> None:
    """Restore a fresh loop from `state`, except for its loggers."""
    metadata, tensors = state.metadata, state.tensors
    losses = [value.clone() for name, value in tensors.items() if name.startswith("losses ")]
    loop.cursor = TrainingCursor.from_state_dict(metadata["position"], losses)
    loop.global_model.restore(metadata["averaged"], tensors)
    start = {name.removeprefix(START_PREFIX): value for name, value in tensors.items() if name.startswith(START_PREFIX)}
    loop.client_store.restore(SavedClients(client_rows(tensors), start, metadata.get("client_store")))
    for name, value in loop.server.fragments.optimizer_state().items():
        value.copy_(tensors[f"server {name}"])
    loop.server.algorithm.restore(tensors)
    for kind, values in (
        ("sum", _partial_sums(loop)),
        ("feedback", loop.server.fragments.error_feedback()),
    ):
        for name, value in values.items():
            if f"{kind} {name}" in tensors:
                value.copy_(tensors[f"{kind} {name}"])
    if "torch random state" in tensors:
        torch.set_rng_state(tensors["torch random state"].clone())
    if "cuda random state" in tensors and loop.global_model.flat_params.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda random state"].clone(), loop.global_model.flat_params.device)


def _partial_sums(loop: Loop) -> dict[str, Tensor]:
    """Return the sums of the round so far, as live references."""
    return loop.server.fragments.partial_sums() | loop.server.algorithm.partial_sums()
