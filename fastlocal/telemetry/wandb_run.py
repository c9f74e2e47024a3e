"""Weights & Biases logging. wandb is imported only when a logger is made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from fastlocal.common.errors import UsageError
from fastlocal.telemetry.base import Logger, RunSummary

OLDEST = (0, 30)
"""First supported version of wandb: older ones cannot be kept from asking for an API key."""


class WandbLogger(Logger):
    """Log evaluations, the configuration and, on demand, checkpoints. Never asks for an API key.

    Args:
        mode: `online`; `offline` writes `directory`/wandb for a later `wandb sync`; `disabled` does nothing.
        entity: Account or team, None for the user's default.
        project: wandb project.
        name: Name of the run.
        directory: Run directory; nothing is written before `start`.
        save_checkpoints: Upload each checkpoint.

    Raises:
        UsageError: wandb is not installed, or `online` without a valid login.
    """

    def __init__(
        self,
        mode: Literal["online", "offline", "disabled"],
        entity: str | None,
        project: str,
        name: str,
        directory: Path,
        save_checkpoints: bool,
    ) -> None:
        self._options = {"mode": mode, "entity": entity, "project": project, "name": name, "dir": str(directory)}
        self._save_checkpoints = save_checkpoints
        self._wandb = None if mode == "disabled" else _import_wandb()
        self._run: Any = None
        self._error_before: BaseException | None = None
        self._logged = 0
        if mode == "online":
            _require_login(self._wandb)

    def start(self, summary: RunSummary) -> None:
        self._error_before = sys.exc_info()[1]
        if self._wandb is not None:
            # console="off": otherwise wandb wraps the stream of the progress bar
            settings = self._wandb.Settings(console="off")
            try:
                self._run = self._wandb.init(**self._options, config=summary.config, settings=settings)
            except self._wandb.errors.Error as error:
                raise UsageError(f"--wandb {self._options['mode']}: {_first_line(error)}") from error

    def state(self) -> dict[str, Any]:
        return {} if self._run is None else {"wandb": [self._run.id, self._logged]}

    def restore(self, state: dict[str, Any]) -> None:
        if self._wandb is not None and "wandb" in state:
            run_id, self._logged = state["wandb"]
            self._options |= {"id": run_id, "resume": "allow"}

    def evaluation(self, row: dict[str, Any]) -> None:
        if self._run is not None:
            self._run.log(row, step=self._logged)  # wandb drops a repeated row by its step
            self._logged += 1

    def checkpoint(self, path: Path) -> None:
        if self._run is not None and self._save_checkpoints:
            self._run.save(str(path), base_path=str(path.parent), policy="now", glob=False)

    def close(self) -> None:
        """Finish the run, as failed if an exception after `start` is in progress."""
        if self._run is not None:
            failed = sys.exc_info()[1] not in (None, self._error_before)
            self._run.finish(exit_code=1 if failed else 0)
            self._run = None


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UsageError(
            "--wandb needs the package wandb: pip install 'fastlocal[wandb]', or --wandb disabled"
        ) from error
    if tuple(int(part) for part in wandb.__version__.split(".")[:2]) < OLDEST:
        raise UsageError(
            f"--wandb needs wandb {OLDEST[0]}.{OLDEST[1]} or newer and finds {wandb.__version__}: "
            "pip install --upgrade 'fastlocal[wandb]'"
        )
    return wandb


def _require_login(wandb: Any) -> None:
    """Check the login; wandb.init would ask for an API key on the terminal, wandb.login need not."""
    wandb.setup(settings=wandb.Settings(mode="online"))  # the flag wins over WANDB_MODE
    try:
        logged_in = wandb.login(prompt=False, verify=True)
    except wandb.errors.Error as error:
        reason = _first_line(error)
        raise UsageError(f"--wandb online: {reason} (`wandb login` or --wandb offline would do)") from error
    if not logged_in:
        raise UsageError("--wandb online needs a login: run `wandb login`, set WANDB_API_KEY, or use --wandb offline")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
