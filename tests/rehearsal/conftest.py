"""The rehearsals' stand-in for a driver is compiled once; where a GPU is there, it is used instead of rehearsed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
import torch

from fastlocal.common.disk_cache import cache_file
from tests.rehearsal.cuda_api import build_hooks, rehearsal
from tests.rehearsal.device import Device

collect_ignore_glob = ["test_*.py"] if torch.cuda.is_available() else []

Rehearsal = Callable[..., AbstractContextManager[Device]]


@pytest.fixture(scope="session")
def rehearsed(caches: Path) -> Rehearsal:
    """A context manager within which there is a CUDA device; see `rehearsal` for what it takes."""
    return partial(rehearsal, build_hooks(cache_file("native").resolve()))
