"""Interrupts that no signal brought, such as a logger's own, and what one leaves behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastlocal.config.schema import RunConfig
from fastlocal.params.losses import cross_entropy
from fastlocal.runs.build import build_run
from fastlocal.runs.run import train
from fastlocal.telemetry.base import Logger, RoundReport
from tests.helpers import small_models
from tests.helpers.interrupted import RUN, run


class Leaving(Logger):
    """Ends the run after its first round."""

    def round(self, report: RoundReport) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize(("grace", "saved"), [(600.0, True), (0.0, False)])
def test_a_logger_that_interrupts_waits_no_longer_than_a_signal_would(
    grace: float, saved: bool, tmp_path: Path
) -> None:
    """Else the save at the end takes as long as the disk does: 100 MB of momenta here, half a minute on a busy one."""
    data, module = small_models.images(), small_models.Wide()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", module, data, Leaving(), grace=grace, momentum=0.9, replacement=True, debug=False)
    assert (tmp_path / "run" / "resume.pt").exists() == saved
    assert saved or time.monotonic() - began < 60
    assert [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []


def test_the_next_run_is_not_interrupted(tmp_path: Path) -> None:
    """Where signals are ignored too, as by what is started in the background."""
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for name, logger, outcome in (
            ("first", Leaving(), pytest.raises(KeyboardInterrupt)),
            ("second", Logger(), contextlib.nullcontext()),
        ):
            config = RunConfig().with_values(**RUN, log_pth=str(tmp_path / name), grace=0.0)
            ready = build_run(config, small_models.images(), small_models.Wide, cross_entropy, model_flag="model")
            with outcome:
                train(ready, overwrite=False, make_loggers=lambda path, logger=logger: [logger])
    finally:
        signal.signal(signal.SIGINT, usual)


HALF_MADE = """
import os, signal, sys
from fastlocal import cli

class Half:
    def __del__(self):
        raise AttributeError("not all of it is there")

def command(argv):
    half = Half()
    if argv == ["signal"]:
        os.kill(os.getpid(), signal.SIGINT)
    return 0

cli._run = command
sys.exit(cli.main())
"""


@pytest.mark.parametrize("words", [[], ["signal"]])
def test_what_a_signal_leaves_half_made_does_not_complain(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", HALF_MADE, *words], capture_output=True, text=True)
    if words:
        assert (done.returncode, done.stderr) == (75, "fastlocal: stopped by a signal\n")
    else:
        assert done.returncode == 0 and "AttributeError: not all of it is there" in done.stderr
