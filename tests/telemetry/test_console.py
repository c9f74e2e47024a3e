from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fastlocal.telemetry.base import RoundReport, RunSummary
from fastlocal.telemetry.console import ConsoleLogger, summary_table

SPEED = r"(\d+) samples/s"


def _summary(rounds: int = 20, samples: int = 20_000) -> RunSummary:
    return RunSummary(name="run", directory=Path("."), config={}, clients=4, rounds=rounds, samples=samples)


def _report(comm_round: int, accuracy: float | None = 0.6543, samples: int = 1000) -> RoundReport:
    return RoundReport(
        comm_round, epoch=0, local_steps=8, learning_rate=0.1, train_loss=1.2345, train_acc1=accuracy, samples=samples
    )


def _row(comm_round: int, accuracy: float | None = 0.7746) -> dict[str, Any]:
    return {"comm_round": comm_round, "train_loss": 1.0 / (1 + comm_round), "val_acc1": accuracy, "val_loss": 0.8123}


def test_plain_lines_where_the_output_is_no_terminal() -> None:
    stream = io.StringIO()
    logger = ConsoleLogger(stream)
    logger.start(_summary())
    logger.round(_report(3))
    logger.evaluation(_row(3))
    logger.message("a line [for] a person")
    logger.close()
    first, second, third = stream.getvalue().splitlines()
    assert re.fullmatch(rf"round 3/20 epoch 0 loss 1\.2345 acc 0\.6543 lr 0\.1 {SPEED}", first)
    assert second == "evaluation round 3/20 val acc 0.7746 val loss 0.8123"
    assert third == "a line [for] a person"


def test_targets_without_accuracy() -> None:
    stream = io.StringIO()
    logger = ConsoleLogger(stream)
    logger.start(_summary())
    logger.round(_report(1, accuracy=None))
    logger.evaluation(_row(1, accuracy=None))
    first, second = stream.getvalue().splitlines()
    assert re.fullmatch(rf"round 1/20 epoch 0 loss 1\.2345 lr 0\.1 {SPEED}", first)
    assert second == "evaluation round 1/20 val loss 0.8123"


def test_speed_is_over_all_the_time_since_the_start() -> None:
    stream = io.StringIO()
    logger = ConsoleLogger(stream)
    before = time.monotonic()
    logger.start(_summary())
    logger.round(_report(1))
    time.sleep(0.2)  # an evaluation, say
    logger.round(_report(2))
    after = time.monotonic()
    speed = float(re.findall(SPEED, stream.getvalue())[1])
    assert 2000 / (after - before) - 1 <= speed <= 2000 / 0.2 + 1


def _on_a_terminal(program: str, interrupt_at: bytes | None = None) -> tuple[str, int]:
    """What `program`, run in a terminal 100 columns wide, shows, and its exit status."""
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "24"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=side, stdout=side, stderr=side, env=environment
    ) as process:
        os.close(side)
        shown = b""
        while True:
            try:
                piece = os.read(main, 4096)
            except OSError:  # how Linux says that the other side is closed
                break
            if not piece:
                break
            shown += piece
            if interrupt_at is not None and interrupt_at in shown:
                process.send_signal(signal.SIGINT)
                interrupt_at = None
    os.close(main)
    return shown.decode(), process.returncode


PROGRAM = """
import sys, time
from pathlib import Path
from fastlocal.telemetry.base import RoundReport, RunSummary
from fastlocal.telemetry.console import ConsoleLogger
logger = ConsoleLogger()
logger.start(RunSummary("run", Path("."), {}, 4, 20, 20_000))
try:
    for comm_round in range(1, ROUNDS + 1):
        logger.round(RoundReport(comm_round, 0, 8, 0.1, 1.2345, 0.6543, 1000))
        if comm_round == 2:
            logger.message("a line [for] a person")
            logger.evaluation({"comm_round": 2, "val_acc1": 0.7746, "val_loss": 0.8123})
        time.sleep(0.05)
    END
finally:
    logger.close()
print("after")
"""


def _program(rounds: int, end: str = "pass") -> str:
    return PROGRAM.replace("ROUNDS", str(rounds)).replace("END", end)


def _without_styles(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)


def test_terminal_shows_a_live_bar_with_messages_above_it() -> None:
    shown, status = _on_a_terminal(_program(rounds=20))
    assert status == 0
    assert "\r\x1b[2K" in shown  # the line is drawn over
    plain = _without_styles(shown)
    bar = re.compile(r"round (\d+)/20 [━╸╺]+ *loss 1\.2345 acc 0\.6543 (?:test 0\.7746 )?[\d.]+k? samples/s 0:00:\d\d")
    rounds = [int(found) for found in bar.findall(plain)]
    assert rounds == sorted(rounds) and len(set(rounds)) >= 2 and rounds[-1] == 20
    lines = plain.splitlines()
    assert any(line.endswith("a line [for] a person") for line in lines)
    assert lines[-1] == "after"  # on a line of its own
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") >= 0  # the cursor is back


@pytest.mark.parametrize("end", ["raise RuntimeError('broken')", "time.sleep(30)"])
def test_the_bar_ends_cleanly_when_the_run_does_not(end: str) -> None:
    interrupt_at = b"round 3/20" if "sleep" in end else None
    shown, status = _on_a_terminal(_program(rounds=3, end=end), interrupt_at)
    assert status != 0
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") >= 0
    lines = _without_styles(shown).splitlines()
    assert re.search(r"round 3/20 .* samples/s", "\n".join(lines))
    assert "Traceback (most recent call last):" in lines  # begins on a line of its own


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines() -> None:
    shown, _ = _on_a_terminal("import os; os.environ['TERM'] = 'dumb'" + _program(rounds=2))
    assert "\x1b" not in shown and len(re.findall(r"round \d/20 epoch 0 loss", shown)) == 2


def test_summary_table_shows_few_rows_with_the_first_and_the_last() -> None:
    lines = summary_table([_row(comm_round, comm_round / 100) for comm_round in range(1, 101)]).splitlines()
    assert lines[0].split() == ["round", "train", "loss", "test", "accuracy"]
    rounds = [int(line.split()[0]) for line in lines[1:]]
    assert len(rounds) == 10 and rounds[0] == 1 and rounds[-1] == 100
    assert {later - earlier for earlier, later in zip(rounds, rounds[1:], strict=False)} == {11}
    assert lines[-1].split() == ["100", "0.0099", "1.0000"]


@pytest.mark.parametrize("count", [0, 1, 2, 9, 10, 11])
def test_summary_table_repeats_no_row(count: int) -> None:
    rows = summary_table([_row(comm_round) for comm_round in range(1, count + 1)]).splitlines()[1:]
    assert len(rows) == len(set(rows)) == min(count, 10)


def test_summary_table_without_accuracies_shows_the_loss() -> None:
    lines = summary_table([_row(0, None), _row(5, None)]).splitlines()
    assert lines[0].split() == ["round", "train", "loss", "test", "loss"]
    assert [line.split() for line in lines[1:]] == [["0", "-", "0.8123"], ["5", "0.1667", "0.8123"]]
