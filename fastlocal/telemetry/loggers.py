"""Which loggers a run's flags ask for."""

from __future__ import annotations

from pathlib import Path

from ..config.schema import LogConfig
from .base import Logger


def sinks(log: LogConfig, name: str, directory: Path, *, console: bool) -> list[Logger]:
    """The loggers beside metrics.jsonl; each package is imported only where it is asked for.

    name: the recipe's        directory: the run directory, which need not exist yet
    Raises UsageError for a missing package and for wandb without a login.
    """
    found: list[Logger] = []
    if console:
        from .console import ConsoleLogger

        found.append(ConsoleLogger())
    if log.tensorboard:
        from .tensorboard_run import TensorboardLogger

        found.append(TensorboardLogger(directory))
    if log.wandb != "disabled":
        from .wandb_run import WandbLogger

        run_name = f"{name}_{directory.name}"
        found.append(WandbLogger(log.wandb, log.wandb_entity, log.wandb_project, run_name, directory, log.wandb_save))
    return found
