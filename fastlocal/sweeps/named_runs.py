"""Build the runs of a sweep of a named model on a named data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from ..checkpoint.model_file import read_state
from ..checkpoint.restore import with_stored_settings
from ..data.datasets import SEEDED
from ..data.labels import refuse_empty_classes
from ..data.types import DataSet
from ..distributed.world import World
from ..runs.build import PreparedRun
from ..runs.from_config import load_data, make_model, run_from_config
from .plan import SweepRun


class NamedRuns:
    """Builds runs; each data set and each file of start weights is read once."""

    def __init__(self, world: World, message: Callable[[str], None], *, resume: bool) -> None:
        """Build runs for these processes.

        Args:
            world: The processes.
            message: Takes one log line while data are read.
            resume: Whether runs take open settings from the config.json of their directories.
        """
        self._world, self._message, self._resume = world, message, resume
        self._data: dict[str, DataSet] = {}
        self._states: dict[str, dict[str, Tensor]] = {}

    def build(self, run: SweepRun, *, stored_partition: Path | None, replicas: int) -> PreparedRun:
        """See Builder.build."""
        config = run.config
        if self._resume:
            config = with_stored_settings(config, Path(str(config.log.log_pth)), fill_in=True)
        return run_from_config(
            config,
            self._message,
            world=self._world,
            stored_partition=stored_partition,
            data=self._load(run),
            replicas=replicas,
        )

    def make_module(self, run: SweepRun, base: PreparedRun) -> Callable[[], nn.Module]:
        """See Builder.make_module."""
        path = run.config.model.resume_pth
        if path is not None and path not in self._states:
            self._states[path] = read_state(Path(path).expanduser(), "--resume-pth")
        state = None if path is None else self._states[path]
        return lambda: make_model(run.config, base.data, state, "--resume-pth", Path(path or "").expanduser())

    def _load(self, run: SweepRun) -> DataSet:
        config = run.config
        seed = config.machine.seed if config.data.dataset in SEEDED else None
        key = repr((config.data, config.schedule.schedule, seed))
        if key not in self._data:
            self._data.clear()  # one data set in memory at a time
            data = load_data(config, self._message)
            refuse_empty_classes(data, data_pth=config.data.data_pth, train_pth=config.data.train_pth)
            self._data[key] = data
        return self._data[key]
