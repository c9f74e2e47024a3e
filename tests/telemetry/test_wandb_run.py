"""The real wandb, offline or without a login; what it wrote is read from the run's own log."""

from __future__ import annotations

import json
import os
import pty
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from fastlocal.telemetry.base import RunSummary
from fastlocal.telemetry.wandb_run import WandbLogger

ROW = {
    "epoch": 2,
    "comm_round": 5,
    "train_acc1": 0.75,
    "train_loss": 0.5,
    "val_acc1": None,
    "val_loss": 1 / 3,
    "best_acc": 0.875,
    "iter": 40,
    "lr": 0.32,
}
CONFIG = {"data": {"dataset": "digits"}, "clients": 4}
BLOCK_BYTES = 32768
HEADER_BYTES = 7

ONLINE = """
import sys
from pathlib import Path
from fastlocal.common.errors import UsageError
from fastlocal.telemetry.wandb_run import WandbLogger
BEFORE
try:
    WandbLogger("online", None, "project", "run", Path(sys.argv[1]), save_checkpoints=False)
except UsageError as error:
    print(error)
"""


def _logger(directory: Path, mode: Any = "offline", save_checkpoints: bool = False) -> WandbLogger:
    return WandbLogger(mode, None, "project", "my-run", directory, save_checkpoints)


def _summary(directory: Path) -> RunSummary:
    return RunSummary("my-run", directory, CONFIG, clients=4, rounds=20, samples=1000)


def _records(directory: Path) -> Iterator[Any]:
    """What wandb stored for `wandb sync`: protobuf records in LevelDB's log format (32 KiB blocks)."""
    wandb.teardown()  # its service has written all that it was sent once it has ended
    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    data = path.read_bytes()
    position, record = HEADER_BYTES, b""
    while position + HEADER_BYTES <= len(data):
        left = BLOCK_BYTES - position % BLOCK_BYTES
        if left < HEADER_BYTES:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER_BYTES])
        position += HEADER_BYTES
        record += data[position : position + length]
        position += length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def _of_kind(directory: Path, kind: str) -> list[Any]:
    return [getattr(record, kind) for record in _records(directory) if record.WhichOneof("record_type") == kind]


def test_offline_run_holds_rows_and_configuration(tmp_path: Path) -> None:
    logger = _logger(tmp_path)
    assert not list(tmp_path.iterdir())
    logger.start(_summary(tmp_path))
    logger.evaluation(ROW)
    logger.evaluation({**ROW, "comm_round": 6})
    logger.close()
    logger.close()

    rows = [
        {item.nested_key[0]: json.loads(item.value_json) for item in history.item}
        for history in _of_kind(tmp_path, "history")
    ]
    ours = [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]
    assert ours == [ROW, {**ROW, "comm_round": 6}]
    (run,) = _of_kind(tmp_path, "run")
    assert (run.project, run.display_name) == ("project", "my-run")
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert {key: config[key] for key in CONFIG} == CONFIG
    assert [end.exit_code for end in _of_kind(tmp_path, "exit")] == [0]


@pytest.mark.parametrize("save", [True, False])
def test_checkpoints_are_uploaded_only_if_asked(tmp_path: Path, save: bool) -> None:
    directory = tmp_path / "run [1]"
    directory.mkdir()
    logger = _logger(directory, save_checkpoints=save)
    logger.start(_summary(directory))
    for name in ("latest.pt", "H=3-3-3_epoch=0_round=1_phase_round=1.pt", "latest.pt"):
        (directory / name).write_bytes(b"weights")
        logger.checkpoint(directory / name)
    logger.close()
    uploads = [file.path for files in _of_kind(directory, "files") for file in files.files if file.path.endswith(".pt")]
    assert set(uploads) == ({"latest.pt", "H=3-3-3_epoch=0_round=1_phase_round=1.pt"} if save else set())
    assert uploads.count("latest.pt") == (2 if save else 0)


def test_a_run_that_breaks_is_marked_as_failed(tmp_path: Path) -> None:
    logger = _logger(tmp_path)
    with pytest.raises(RuntimeError, match="broken"):
        logger.start(_summary(tmp_path))
        try:
            raise RuntimeError("broken")
        finally:
            logger.close()
    assert [end.exit_code for end in _of_kind(tmp_path, "exit")] == [1]


def test_a_run_inside_the_handling_of_an_older_error_is_not_failed(tmp_path: Path) -> None:
    try:
        raise RuntimeError("before the run")
    except RuntimeError:
        logger = _logger(tmp_path)
        logger.start(_summary(tmp_path))
        logger.close()
    assert [end.exit_code for end in _of_kind(tmp_path, "exit")] == [0]


def test_disabled_writes_nothing_and_needs_no_wandb(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["wandb"] = None  # as if it were not installed
from pathlib import Path
from fastlocal.telemetry.base import RunSummary
from fastlocal.telemetry.wandb_run import WandbLogger
directory = Path(sys.argv[1])
logger = WandbLogger("disabled", None, "project", "run", directory, save_checkpoints=True)
logger.start(RunSummary("run", directory, {}, 1, 1, 1))
logger.evaluation({"comm_round": 1})
logger.checkpoint(directory / "latest.pt")
logger.close()
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    assert not list(tmp_path.iterdir())


def _without_account(home: Path, **variables: str) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_") and key != "NETRC"}
    return {**environment, "HOME": str(home), **variables}


def _refusal(home: Path, before: str = "", **variables: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", ONLINE.replace("BEFORE", before), str(home / "run")],
        env=_without_account(home, **variables),
        capture_output=True,
        text=True,
        check=True,
    )
    assert not (home / "run").exists()
    return finished.stdout


LOGIN = "--wandb online needs a login: run `wandb login`, set WANDB_API_KEY, or use --wandb offline\n"


@pytest.mark.parametrize("variables", [{}, {"WANDB_MODE": "offline"}, {"WANDB_MODE": "disabled"}])
def test_online_without_a_login_is_refused(tmp_path: Path, variables: dict[str, str]) -> None:
    assert _refusal(tmp_path, **variables) == LOGIN


def test_online_without_a_login_asks_nothing_on_a_terminal(tmp_path: Path) -> None:
    main, side = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", ONLINE.replace("BEFORE", ""), str(tmp_path / "run")],
        stdin=side,
        stdout=side,
        stderr=side,
        env=_without_account(tmp_path),
    ) as process:
        os.close(side)
        process.wait(timeout=300)  # a prompt would wait for ever
        shown = os.read(main, 65536).decode().replace("\r\n", "\n")
    os.close(main)
    assert shown == LOGIN


def test_a_key_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    shown = _refusal(tmp_path, WANDB_API_KEY="short")
    assert shown.startswith("--wandb online: ") and "WANDB_API_KEY" in shown and shown.count("\n") == 1


def test_without_wandb_the_extra_is_named(tmp_path: Path) -> None:
    shown = _refusal(tmp_path, before="sys.modules['wandb'] = None  # as if it were not installed")
    assert shown == "--wandb needs the package wandb: pip install 'fastlocal[wandb]', or --wandb disabled\n"


def test_a_wandb_that_is_too_old_is_refused(tmp_path: Path) -> None:
    shown = _refusal(tmp_path, before="import wandb; wandb.__version__ = '0.19.11'")
    assert shown == "--wandb needs wandb 0.30 or newer and finds 0.19.11: pip install --upgrade 'fastlocal[wandb]'\n"


def test_a_run_that_goes_on_keeps_its_id_and_sends_no_row_twice(tmp_path: Path) -> None:
    """wandb numbers rows by step, and drops one whose step it has."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first = _logger(tmp_path / "first")
    first.start(_summary(tmp_path / "first"))
    first.evaluation(ROW)
    state = json.loads(json.dumps(first.state()))
    first.close()
    second = _logger(tmp_path / "second")
    second.restore(state)
    second.start(_summary(tmp_path / "second"))
    second.evaluation({**ROW, "comm_round": 6})
    second.close()
    runs = [_of_kind(tmp_path / name, "run")[0] for name in ("first", "second")]
    assert runs[0].run_id == runs[1].run_id
    steps = [history.step.num for name in ("first", "second") for history in _of_kind(tmp_path / name, "history")]
    assert steps == [0, 1]
