"""Rounds of a system and of the loop over modules, in turns: A B A B."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.common import StealMeter
from bench.peers.systems import LOOP, SIDES, System
from bench.peers.workloads import WRITTEN_ROUNDS, Workload
from bench.processes import AnsweringProcess

START_SECONDS, ROUND_SECONDS = 240.0, 240.0
"""Timeouts of a start, and of the rounds of an answer."""
LOSS_TOLERANCE = 1e-4
"""Greatest difference of losses on the check samples, where momentum is treated alike."""


@dataclass
class Comparison:
    """The result of a system on a workload.

    Attributes:
        system: Name of the system.
        fault: Why there are no times, or an empty string.
        facts: What the side said of itself: momentum, versions, clients.
        start_s: Seconds until the system was ready.
        first_s: Seconds of its first round, compilation included.
        loss: Of its global model after the checked rounds.
        expected: That of the loop, with momentum treated alike.
        rounds: Rounds in a turn.
        loop_s: Seconds of a round of the loop, by turn.
        own_s: Seconds of a round of the system, by turn.
        load: Load of the machine before the first turn, by the average of a minute.
        steal: Percent of the processors that others took during the turns.
    """

    system: str
    fault: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    start_s: float = 0.0
    first_s: float = 0.0
    loss: float = float("nan")
    expected: float = float("nan")
    rounds: int = 1
    loop_s: list[float] = field(default_factory=list)
    own_s: list[float] = field(default_factory=list)
    load: float = 0.0
    steal: str = ""

    def ratio(self, workload: Workload) -> float:
        """Return how many times as fast as the loop it is, by client-step: the median over turns."""
        share = (self.facts.get("clients") or workload.clients) / workload.clients
        return statistics.median(a * share / b for a, b in zip(self.loop_s, self.own_s, strict=True))


class Side:
    """Context manager for the process of a system.

    Args:
        system: The system.
        python: Its interpreter.
        workload: What it trains.
        folder: Folder with the workload's files.
    """

    def __init__(self, system: System, python: str, workload: Workload, folder: Path) -> None:
        command = [python, str(SIDES / system.side), str(folder), workload.facts(), *system.arguments]
        start = time.monotonic()
        log = folder / f"{system.name}.log".replace("/", "_")
        self._process = AnsweringProcess(command, log, dict(system.variables), own_group=True)
        self.facts = self._process.answer(START_SECONDS)
        self.start_s = time.monotonic() - start

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.close()

    def time_rounds(self, number: int) -> float:
        """Train rounds; return the seconds of one.

        Raises:
            RuntimeError: It failed, or did not answer in time.
        """
        return float(self._ask(f"rounds {number}")["seconds"]) / number

    def loss(self) -> float:
        """Return the loss of the global model on the check samples."""
        return float(self._ask("loss")["loss"])

    def _ask(self, line: str) -> dict[str, Any]:
        self._process.send(line)
        answer = self._process.answer(ROUND_SECONDS)
        if "fault" in answer:
            raise RuntimeError(answer["fault"])
        return answer


def expected_losses(workload: Workload, python: str, folder: Path) -> dict[str, float]:
    """Return the loss of the loop after the checked rounds, by what becomes of momentum."""
    losses = {}
    for words in ((), ("reset",)):
        with Side(System(LOOP, "loop_rounds.py", arguments=words), python, workload, folder) as side:
            side.time_rounds(WRITTEN_ROUNDS)
            losses["reset" if words else "kept"] = side.loss()
    return losses


def compare(
    system: System,
    python: str,
    loop: Side,
    workload: Workload,
    folder: Path,
    expected: dict[str, float],
    *,
    pairs: int,
    turn_s: float,
    most_s: float,
    report: Callable[[str], None] = print,
) -> Comparison:
    """Start a system, check its first rounds, and time it and the loop in turns.

    Args:
        system: The system.
        python: Its interpreter.
        loop: The loop, which has trained before.
        workload: What they train.
        folder: Folder with the workload's files.
        expected: Result of `expected_losses`.
        pairs: Turns of both.
        turn_s: A turn holds rounds of the loop for about these seconds.
        most_s: Begin no turn after these seconds of turns, but for the first.
        report: Called with a line for each turn.
    """
    found = Comparison(system.name)
    with contextlib.suppress(OSError):
        found.load = os.getloadavg()[0]
    with Side(system, python, workload, folder) as side:
        found.facts, found.start_s = side.facts, side.start_s
        found.fault = str(side.facts.get("fault", ""))
        if found.fault:
            return found
        try:
            found.first_s = side.time_rounds(1)
            if WRITTEN_ROUNDS > 1:
                side.time_rounds(WRITTEN_ROUNDS - 1)
            found.loss = side.loss()
            found.expected = expected["kept" if not workload.momentum else str(found.facts["momentum"])]
            if system.compared and not abs(found.loss - found.expected) <= LOSS_TOLERANCE:
                found.fault = f"its loss is {found.loss:.6f}, and that of the loop {found.expected:.6f}"
                return found
            found.rounds = max(1, round(turn_s / loop.time_rounds(1)))
            begin, steal = time.monotonic(), StealMeter()
            while len(found.own_s) < pairs and (not found.own_s or time.monotonic() - begin < most_s):
                found.loop_s.append(loop.time_rounds(found.rounds))
                found.own_s.append(side.time_rounds(found.rounds))
                report(f"  {found.loop_s[-1]:.4f} s of the loop, {found.own_s[-1]:.4f} s of {system.name}")
            found.steal = steal.percent()
        except RuntimeError as error:
            found.fault = str(error)
            del found.loop_s[len(found.own_s) :]
    return found
