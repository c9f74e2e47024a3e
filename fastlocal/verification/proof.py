"""Everything that `fastlocal verify` checks, in its order: what a later check rests on comes first."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from fastlocal import kernels

from ..executors.round_plan import RoundPlan
from ..executors.stacked import StackedExecutor
from ..kernel_trial.calls import Calls
from ..kernel_trial.jobs import line
from .checks import Check
from .environment import environment
from .modules import Trained, check_exact, check_own, plain_steps
from .operations import backends, check_operations, chosen

NOTED_CLIENTS = 4

Make = Callable[[str | None], AbstractContextManager[Trained]]
"""The run in a precision, or in its own for None, as long as it lasts."""


def prove(device: torch.device, make: Make, *, ops: Sequence[str] | None, seconds: float) -> Iterator[Check]:
    """Check a machine, the ops that it runs, and the steps of a run.

    Kernels that are wrong are refused from then on, in this process and in later ones; so the steps of the run are
    checked as the run will take them.

    Args:
        device: Where the run is.
        make: Makes the run.
        ops: Those to check; None: all that the device has.
        seconds: Within which each case of an op must be through.

    Raises:
        UsageError: For an op that there is not, and for what keeps the run from starting.
    """
    wanted = chosen(backends(device), ops)
    yield from environment(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calls.pt"
        calls = Calls()
        with calls.noted(), make(None) as trained:
            if trained.no_vmap is None:
                _take_step(trained)
        calls.save(path)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # for the processes that check
        yield from check_operations(device, wanted, path, seconds)
    try:
        yield from _check_module(make)
    except torch.OutOfMemoryError as error:
        yield Check("module", "steps", None, f"not compared: {line(error)}")
    except Exception as error:
        if not kernels.is_device_fault(error):
            raise
        yield Check("module", "steps", f"the device failed: {line(error)}")


def _check_module(make: Make) -> Iterator[Check]:
    with make("fp64") as trained:
        if trained.random:
            yield Check("module", "steps", None, "not compared: the model draws random numbers itself")
            return
        exact = plain_steps(trained)
        if trained.no_vmap is None:
            yield from check_exact(trained, exact)
        else:
            yield Check("module", "stacked", None, f"not used: vmap does not take the model ({trained.no_vmap})")
    with make(None) as trained:
        yield from check_own(trained, exact)


def _take_step(trained: Trained) -> None:
    """One stacked step and the sum of a mean, for the calls that they make."""
    problem = trained.problem
    device, source = problem.numerics.device, problem.source
    clients = min(NOTED_CLIENTS, trained.clients)
    stack = problem.stack(clients)
    params = stack.params
    ids = torch.arange(clients * trained.batch, device=source.index_device) % len(source)
    rates = torch.zeros(1, clients, dtype=params.dtype, device=device)
    plan = RoundPlan(torch.arange(clients, device=device), 0, rates, ids.view(1, clients, trained.batch))
    StackedExecutor(problem).run_round(stack, plan)
    total = torch.zeros(problem.layout.n_params, dtype=torch.float64, device=device)
    kernels.get("client_mean", device=device)(params, total, 1.0)
