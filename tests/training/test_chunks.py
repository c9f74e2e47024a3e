"""Rows of a round are split into as few and as equal chunks as can be, also where a run goes on within the round."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastlocal.schedule.cohort import ClientWeights, Cohort
from fastlocal.schedule.rounds import RoundSchedule
from fastlocal.training.planner import Planner


class Everybody:
    def __init__(self, clients: int) -> None:
        self._ids = torch.arange(clients)

    def cohort(self, first_step: int) -> Cohort:
        return Cohort(self._ids, torch.ones_like(self._ids))


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 7, 50])
def test_chunks_are_few_and_equal_and_stay_so(chunk: int) -> None:
    for clients in (1, 2, 5, 10, 31, 49, 51, 101):
        streams: Any = Everybody(clients)
        unused: Any = None
        cpu = torch.device("cpu")
        planner = Planner(
            unused, streams, ClientWeights(), clients, range(clients), False, chunk, torch.float32, cpu, cpu
        )
        schedule = RoundSchedule(0, 1, True, 1, 1, 1, 1, 0.1, False, None)
        chunks = planner.chunks(schedule)
        sizes = [len(rows) for rows in chunks]
        assert [row for rows in chunks for row in rows] == list(range(clients))
        assert max(sizes) <= chunk and max(sizes) - min(sizes) <= 1 and len(sizes) == -(-clients // chunk)
        for done in range(len(chunks)):
            assert planner.chunks(schedule, chunks[:done]) == chunks[done:]
