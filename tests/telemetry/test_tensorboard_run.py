from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastlocal.telemetry.base import RunSummary
from fastlocal.telemetry.tensorboard_run import TensorboardLogger

BLOCKED = """
import sys
sys.modules["tensorboard"] = None  # as if it were not installed
from pathlib import Path
from fastlocal.common.errors import UsageError
from fastlocal.telemetry.tensorboard_run import TensorboardLogger
try:
    TensorboardLogger(Path(sys.argv[1]))
except UsageError as error:
    print(error)
"""


def test_tensorboard_reads_every_number_back(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    logger = TensorboardLogger(directory)
    assert not directory.exists()
    logger.start(RunSummary("run", directory, {}, 4, 20, 1000))
    logger.evaluation({"epoch": 0, "comm_round": 3, "val_acc1": 0.5, "val_loss": 1.25, "lr": 0.1})
    logger.evaluation({"epoch": 1, "comm_round": 7, "val_acc1": None, "val_loss": 1.0, "lr": 0.1})

    events = EventAccumulator(str(directory))
    events.Reload()  # before the logger is closed: TensorBoard watches a run as it goes
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    logger.close()
    lr = pytest.approx(0.1)
    assert scalars == {
        "epoch": [(3, 0), (7, 1)],
        "val_acc1": [(3, 0.5)],
        "val_loss": [(3, 1.25), (7, 1.0)],
        "lr": [(3, lr), (7, lr)],
    }


def test_without_tensorboard_the_extra_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shown = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(directory)], capture_output=True, text=True, check=True
    ).stdout
    assert shown == "--tensorboard needs the package tensorboard: pip install 'fastlocal[tensorboard]'\n"
    assert not directory.exists()


def test_a_run_that_goes_on_hides_what_came_after_its_saved_state(tmp_path: Path) -> None:
    first = TensorboardLogger(tmp_path)
    first.start(RunSummary("run", tmp_path, {}, 4, 20, 1000))
    first.evaluation({"comm_round": 3, "val_loss": 1.0})
    state = first.state()
    first.evaluation({"comm_round": 7, "val_loss": 2.0})
    first.close()
    second = TensorboardLogger(tmp_path)
    second.restore(state)
    second.start(RunSummary("run", tmp_path, {}, 4, 20, 1000))
    second.evaluation({"comm_round": 7, "val_loss": 4.0})
    second.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("val_loss")] == [(3, 1.0), (7, 4.0)]
