"""Rows of several runs as one stack with hyperparameters per row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..params.client_stack import ClientStack
from ..params.correction import Correction
from .round_plan import RoundPlan, RoundResult, RowValues

if TYPE_CHECKING:
    from .base import LocalProblem
    from .jobs import ChunkJob

RunRound = Callable[[ClientStack, RoundPlan], RoundResult]


class JointRows:
    """Take the local steps of several runs by one call of an executor.

    The rows are copied to memory that is the same in every round, as a captured step needs.
    """

    def __init__(self, problem: LocalProblem) -> None:
        """Join runs whose local steps differ from `problem`, that of the executor, by hyperparameters and seeds."""
        self._problem = problem
        self._memory: dict[str, Tensor] = {}

    def run(self, run_round: RunRound, jobs: Sequence[ChunkJob]) -> list[RoundResult]:
        """Take the steps of all jobs, those whose rows all have as many local steps together."""
        if len(jobs) == 1:
            return [run_round(jobs[0].stack, self._plan(jobs))]
        results: dict[int, RoundResult] = {}
        groups: dict[tuple[int, int | None], list[int]] = {}
        for place, job in enumerate(jobs):  # a job whose rows have unequal steps stays alone
            key = job.plan.local_steps, None if job.plan.sizes is None else place
            groups.setdefault(key, []).append(place)
        for places in groups.values():
            results |= zip(places, self._run(run_round, [jobs[place] for place in places]), strict=True)
        return [results[place] for place in range(len(jobs))]

    def _run(self, run_round: RunRound, jobs: Sequence[ChunkJob]) -> list[RoundResult]:
        plan = self._plan(jobs)
        if len(jobs) == 1 and plan.sizes is None:
            return [run_round(jobs[0].stack, plan)]
        stack = self._stack([job.stack for job in jobs])
        result = run_round(stack, plan)
        results, begin = [], 0
        for job in jobs:
            rows = slice(begin, begin + len(job.stack.params))
            for own, values in zip(job.stack.buffers, stack.part(rows).buffers, strict=True):
                own.copy_(values)
            correct = None if result.correct is None else result.correct[rows]
            notes = result.notes if begin == 0 else ()
            results.append(RoundResult(result.losses[:, rows], correct, notes))
            begin = rows.stop
        return results

    def _stack(self, stacks: Sequence[ClientStack]) -> ClientStack:
        """Copy the rows of all runs into one stack."""
        rows = [{**stack.moments, **stack.state} for stack in stacks]
        joined = {name: self._joined(f"state {name}", [own[name] for own in rows]) for name in rows[0]}
        params = self._joined("params", [stack.params for stack in stacks])
        return ClientStack.of(params, joined, self._correction(stacks))

    def _correction(self, stacks: Sequence[ClientStack]) -> Correction | None:
        """Copy the terms of all runs, each with the start of its own round."""
        own = [stack.correction for stack in stacks if stack.correction is not None]
        if not own:
            return None
        counts = torch.tensor([len(stack.params) for stack in stacks])
        group = torch.arange(len(stacks)).repeat_interleave(counts).to(own[0].center.device, torch.int32)
        prox = [correction.prox for correction in own if correction.prox is not None]
        drift = [correction.drift for correction in own if correction.drift is not None]
        return Correction(
            center=self._joined("center", [correction.center.unsqueeze(0) for correction in own]),
            prox=self._joined("prox", prox) if prox else None,
            drift=self._joined("drift", drift) if drift else None,
            group=self._joined("group", [group]),
            late=own[0].late,
        )

    def _joined(self, name: str, parts: Sequence[Tensor]) -> Tensor:
        rows, shape = sum(map(len, parts)), parts[0].shape[1:]
        if name not in self._memory or len(self._memory[name]) < rows:
            self._memory[name] = parts[0].new_empty(rows, *shape)
        return torch.cat(list(parts), out=self._memory[name][:rows])

    def _plan(self, jobs: Sequence[ChunkJob]) -> RoundPlan:
        plans = [job.plan for job in jobs]
        first = plans[0]
        device = first.client_ids.device
        counts = [len(plan.client_ids) for plan in plans]

        def by_row(values: Sequence[Any], dtype: torch.dtype) -> Tensor:
            rows = [value for value, count in zip(values, counts, strict=True) for _ in range(count)]
            return torch.tensor(rows, dtype=dtype, device=device)

        def differ(own: Callable[[LocalProblem], Any], dtype: torch.dtype) -> Tensor | None:
            values = [own(job.problem) for job in jobs]
            return by_row(values, dtype) if set(values) != {own(self._problem)} else None

        first_steps = [plan.first_step for plan in plans]
        values = RowValues(
            seed=differ(lambda problem: problem.seed, torch.int64),
            noise_p=differ(lambda problem: problem.noise and problem.noise.p, torch.float64),
            momentum=differ(lambda problem: problem.momentum, torch.float64),
            weight_decay=differ(lambda problem: problem.weight_decay, torch.float64),
        )
        if len(jobs) == 1:
            return dataclasses.replace(first, values=values)
        return RoundPlan(
            client_ids=torch.cat([plan.client_ids for plan in plans]),
            first_step=first.first_step if len({*first_steps}) == 1 else by_row(first_steps, torch.int64),
            learning_rates=torch.cat([plan.learning_rates for plan in plans], dim=1),
            sample_ids=torch.cat([plan.sample_ids for plan in plans], dim=1),
            values=values,
        )
