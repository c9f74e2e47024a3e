"""Loggers selected by the flags of a run."""

from __future__ import annotations

from pathlib import Path

from ..config.schema import LogConfig
from .base import Logger


def make_loggers(log: LogConfig, name: str, directory: Path, *, console: bool) -> list[Logger]:
    """Make the loggers beside metrics.jsonl; each package is imported only on demand.

    Args:
        log: The settings.
        name: Name of the recipe.
        directory: Run directory; it need not exist yet.
        console: Whether to log to the console.

    Raises:
        UsageError: A package is not installed, or wandb has no login.
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
