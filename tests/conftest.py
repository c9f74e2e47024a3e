"""What holds for every test: one torch thread per process, no deadlines, and caches in a temporary folder.

A test marked `needs("ffcv")`, say, is skipped where that package is not installed; with FASTLOCAL_TEST_ALL=1 it fails.
Without a CUDA device, Triton kernels run in Triton's interpreter, which has to be chosen before triton is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings

from fastlocal.common.disk_cache import cache_file
from fastlocal.common.machine import resident_bytes

if TYPE_CHECKING:
    from tests.helpers.command_line import Outcome
    from tests.helpers.fork_server import ForkServer

CACHES = ("XDG_CACHE_HOME", "TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "WANDB_CACHE_DIR", "WANDB_DIR")

torch.set_num_threads(1)
os.fsync = os.fstat  # no test cuts the power, and a flush to the disk takes 8 ms; closed files still raise
# a suite started in the background ignores Ctrl-C, and so would the programs that tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# a busy machine may stall any example, and the drawing of them
settings.register_profile("fastlocal", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fastlocal")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*packages): optional packages without which the test is skipped")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for package in (name for mark in item.iter_markers("needs") for name in mark.args):
        if importlib.util.find_spec(package) is None:
            stop = pytest.fail if os.environ.get("FASTLOCAL_TEST_ALL") == "1" else pytest.skip
            stop(f"the optional package {package} is not installed; `make test` installs it")


def pytest_runtest_teardown() -> None:
    """Freed memory goes back to the system where it is much: fastlocal keeps it for its next round, tests have none."""
    if resident_bytes() > 1.25 * 2**30:
        with contextlib.suppress(AttributeError, OSError, TypeError):  # of other C libraries than glibc
            ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for everything that torch, triton, wandb and fastlocal keep between runs."""
    folder, base = tmp_path_factory.mktemp("caches"), tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        for name in CACHES:
            patch.setenv(name, str(folder / name.lower()))
        shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        share_compiled(shared / "native")
        if sys.dont_write_bytecode:  # else each program that a test starts compiles all modules, 0.7 s
            patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
            patch.setenv("PYTHONPYCACHEPREFIX", str(shared / "bytecode"))
        yield folder


def share_compiled(folder: Path) -> None:
    """Keep what is compiled in C++ there, as that takes long."""
    folder.mkdir(parents=True, exist_ok=True)
    place = cache_file("native")
    place.parent.mkdir(parents=True)
    place.symlink_to(folder)


@pytest.fixture
def own_cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What fastlocal keeps between runs, of one test alone but for what is compiled in C++."""
    compiled = cache_file("native").resolve()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    share_compiled(compiled)
    return tmp_path / "cache" / "fastlocal"


@pytest.fixture
def scalar_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor compiles without vector instructions, as it takes 9 s to try out which there are."""
    from torch._inductor import cpu_vec_isa

    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", list)


@pytest.fixture(scope="session")
def fork_server(caches: Path) -> Iterator[ForkServer]:
    """Where runs in processes of their own are forked, one at a time; each is to be waited for."""
    from tests.helpers.fork_server import ForkServer

    with ForkServer() as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of `tests.helpers.command_line`, which files with another one replace."""
    from tests.helpers.command_line import write_npz

    return write_npz(tmp_path_factory.mktemp("data") / "tiny.npz")


@pytest.fixture
def refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Trains with the given words after those of a good run, in `tmp_path`, and sees it refused."""
    from tests.helpers.refusals import train_refused

    monkeypatch.chdir(tmp_path)
    return partial(train_refused, capsys, tmp_path, data=data)
