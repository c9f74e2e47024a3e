"""Evaluation by client: the global model and the clients' own models on the clients' held-out samples."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from fastlocal.kernels.attention import FoldedAttention
from fastlocal.kernels.functional import settled

from ..aggregation.global_model import GlobalModel
from ..common import interrupts
from ..common.errors import UsageError
from ..data.labels import unknown_label
from ..data.partition import Partition
from ..data.sources.base import BatchRequest, Source
from ..distributed.world import World
from ..executors.base import LocalProblem
from ..executors.forward import Forward
from ..executors.tuning.conv_strategy import Stacking, Strategies
from ..models.own_functions import rebind_functions
from ..models.own_tensors import tensors_of
from ..module_checks.plain_steps import FAILURES
from ..params.client_stack import ClientStack
from ..params.losses import combination
from .client_results import ClientResult
from .evaluation import BATCH, BATCH_BYTES, batch_sums

COLUMNS = 5
"""Columns of batch_sums before the counts of predictions."""


@dataclass(frozen=True)
class Group:
    """Batches of several clients with equally many samples.

    Attributes:
        rows: int64 [batches], place of each batch's client.
        sample_ids: int64 [batches, samples].
    """

    rows: Tensor
    sample_ids: Tensor


class ClientEvaluator:
    """Evaluate models in evaluation mode on the held-out samples of clients.

    Batches never mix clients, and batches of equal size of several clients are one call. BatchNorms use the statistics
    of the global model.

    Attributes:
        of_all: Whether the global model is evaluated on the samples of all clients.
    """

    def __init__(
        self,
        problem: LocalProblem,
        global_model: GlobalModel,
        source: Source,
        held_out: Partition,
        world: World,
        *,
        of_all: bool,
        stacked: bool,
        conv_strategy: Strategies,
        gradients: bool,
        context: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """Prepare the evaluations.

        Args:
            problem: The local step, whose loss and accuracies are measured.
            global_model: The global model.
            source: The training samples without augmentation.
            held_out: Held-out samples of each client.
            world: The processes, which share the clients.
            of_all: Whether the global model is evaluated on the samples of all clients.
            stacked: Whether the models of several clients are evaluated at once, by vmap.
            conv_strategy: Strategies of stacked convolutions.
            gradients: Whether the module or the loss takes derivatives.
            context: Context of all evaluations.
        """
        self.of_all = of_all
        self._notes: list[str] = []
        self._problem, self._global_model, self._source, self._world = problem, global_model, source, world
        self._indices, self._offsets = torch.from_numpy(held_out.indices), torch.from_numpy(held_out.offsets)
        self._stacked = stacked and not gradients
        self._gradients, self._context = gradients, context
        module = copy.deepcopy(global_model.module)
        module.eval()
        self._rule = combination(problem.loss)
        sums = functools.partial(batch_sums, loss=problem.loss, rule=self._rule, topk=problem.topk, begin=0)
        self._stacking = Stacking(module, conv_strategy)
        if problem.user_module is not None:
            rebind_functions(self._stacking.module, problem.user_module)
        self._forward = Forward(dataclasses.replace(problem, loss=sums), self._stacking.module)

    @property
    def clients(self) -> int:
        """Number of clients."""
        return len(self._offsets) - 1

    def pop_notes(self) -> list[str]:
        """Return the log lines since the last call."""
        notes, self._notes = self._notes, []
        return [*notes, *self._source.pop_messages()]

    def evaluate_own(self, stack: ClientStack, clients: Tensor, step: int) -> list[ClientResult]:
        """Evaluate each client's own model on its samples.

        Args:
            stack: The clients' rows after their local steps.
            clients: int64 [rows], numbers of the clients.
            step: Local steps so far, for random draws.
        """
        return self._evaluate(clients.cpu(), step, stack)

    def evaluate_global(self, cohort: Tensor, step: int) -> list[ClientResult]:
        """Evaluate the global model, as loaded, on the samples of the cohort or of all clients.

        All processes call it; each evaluates a part of the clients.

        Args:
            cohort: int64 [rows], numbers of the clients of the round.
            step: Local steps so far, for random draws.
        """
        clients = torch.arange(self.clients) if self.of_all else cohort.cpu()
        mine = self._world.local_clients(len(clients))
        found = self._evaluate(clients[mine.start : mine.stop], step, None)
        ranks = self._world.all_gather_object([list(one) for one in found], "the evaluation by client")
        return [ClientResult(*one) for rank in ranks for one in rank]

    def _evaluate(self, clients: Tensor, step: int, stack: ClientStack | None) -> list[ClientResult]:
        sums: list[Tensor] = []
        groups = list(self._groups(clients, own=stack is not None))
        device = self._source.index_device
        feed = self._source.feed(BatchRequest(group.sample_ids.to(device), None, 0) for group in groups)
        with contextlib.ExitStack() as opened:
            opened.enter_context(self._context())
            opened.enter_context(torch.set_grad_enabled(self._gradients))
            opened.callback(getattr(feed, "close", lambda: None))
            shared = self._shared_values()
            for group, batch in zip(groups, feed, strict=True):
                interrupts.check_signals()
                # numbers that no client has in training
                numbers = (self.clients + clients[group.rows]).to(batch.inputs.device)
                values = self._values(stack, group.rows, shared)
                sums.append(self._sums(values, shared, batch.inputs, batch.targets, numbers, step))
        return self._results(clients, groups, sums)

    def _groups(self, clients: Tensor, *, own: bool) -> Iterator[Group]:
        """Yield the batches of clients, largest first, those of one size together."""
        kind = self._source.device.type
        size_limit = max(1, min(BATCH[kind], BATCH_BYTES[kind] // self._source.batch_bytes(1)))
        row_bytes = self._problem.layout.n_params * self._problem.numerics.dtype.itemsize
        begins = self._offsets[clients]
        counts = self._offsets[clients + 1] - begins
        full, rest = counts // size_limit, counts % size_limit
        places = torch.arange(len(clients))
        rows = places.repeat_interleave(full)
        number = torch.arange(len(rows)) - (full.cumsum(0) - full)[rows]
        sized = [(size_limit, rows, begins[rows] + number * size_limit)]
        for size in reversed(torch.unique(rest[rest > 0]).tolist()):
            rows = places[rest == size]
            sized.append((size, rows, begins[rows] + full[rows] * size_limit))
        for size, rows, first in sized:
            at_once = max(1, size_limit // size)
            if own:  # the rows of their models are copied
                at_once = max(1, min(at_once, BATCH_BYTES[kind] // row_bytes))
            for at in range(0, len(rows), at_once):
                part = slice(at, at + at_once)
                yield Group(rows[part], self._indices[first[part, None] + torch.arange(size)])

    def _shared_values(self) -> dict[str, Tensor]:
        """Return copies of the global model's tensors, which evaluations may change."""
        module, problem = self._global_model.module, self._problem
        own = tensors_of(module)
        changing = {id(own[name]) for name in problem.state}
        buffers = {
            name: value.detach().clone() for name, value in module.named_buffers() if id(value) not in changing
        }
        state = {name: own[name].detach().clone() for name in problem.state}
        return {**buffers, **state, **problem.layout.views(self._global_model.flat_params)}

    def _values(
        self, stack: ClientStack | None, rows: Tensor, shared: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the tensors that differ between clients, by name; empty for the global model."""
        if stack is None:
            return {}
        rows = rows.to(stack.params.device)
        params = self._problem.layout.views(stack.params[rows])
        return {**params, **{name: values[rows] for name, values in stack.state.items()}}

    def _sums(
        self,
        values: Mapping[str, Tensor],
        shared: Mapping[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        numbers: Tensor,
        step: int,
    ) -> Tensor:
        """Return batch_sums of the batches of a group, [batches, columns].

        Args:
            values: Tensors with a row for each batch, by name.
            shared: Tensors of the global model, by name.
            inputs: [batches, samples, ...].
            targets: [batches, samples, ...].
            numbers: int64 [batches], numbers for random draws.
            step: For random draws.
        """
        at = torch.tensor(step, device=inputs.device)

        def one(own: dict[str, Tensor], inputs: Tensor, targets: Tensor, number: Tensor) -> Tensor:
            named = {name: value.clone() for name, value in shared.items() if name not in own}
            sums, _ = self._forward({**named, **own}, inputs, targets, number, at)
            return settled(sums)

        if self._stacked:
            # with its own weights for each client a layer is one stacked operation, with the same for all torch's own
            mode = self._stacking.mode() if values else FoldedAttention()
            try:
                with mode:
                    return vmap(one, randomness="different")(dict(values), inputs, targets, numbers)
            except torch.OutOfMemoryError:
                raise
            except FAILURES:
                self._stacked = False
                self._notes.append("vmap cannot evaluate this model: clients are evaluated one by one")
        return torch.stack(
            [
                one({name: value[row] for name, value in values.items()}, inputs[row], targets[row], numbers[row])
                for row in range(len(inputs))
            ]
        ).detach()

    def _results(self, clients: Tensor, groups: Sequence[Group], sums: Sequence[Tensor]) -> list[ClientResult]:
        topk = self._problem.topk
        totals = np.zeros((len(clients), COLUMNS + (len(topk) + 1 if topk else 0)))
        if sums:
            found, rows = torch.cat(list(sums)).cpu().numpy(), torch.cat([group.rows for group in groups]).numpy()
            bad = found[:, 0] > 0
            if bad.any():
                classes, place, label = found[bad][0, :3].astype(int).tolist()
                sample_ids = next(ids for at, ids in enumerate(_each(groups)) if bad[at])
                raise UsageError(unknown_label(int(sample_ids[place]), label, classes, "train"))
            np.add.at(totals, rows, found)
        counts = (self._offsets[clients + 1] - self._offsets[clients]).tolist()
        results = []
        for client, count, (_, _, _, loss, weight, *hits) in zip(
            clients.tolist(), counts, totals.tolist(), strict=True
        ):
            if not count:
                continue
            value = loss if self._rule.summed else loss / weight if weight else float("nan")
            accuracy = None if not topk else hits[0] / hits[-1] if hits[-1] else 0.0
            results.append(ClientResult(client, count, value, accuracy))
        return results


def _each(groups: Sequence[Group]) -> Iterator[Tensor]:
    for group in groups:
        yield from group.sample_ids
