"""All checks of `fastlocal verify`, in order: a check follows those that it relies on."""

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
from .modules import ModuleCase, check_exact, check_own, plain_steps
from .operations import backends, check_operations, select

RECORD_CLIENTS = 4

Make = Callable[[str | None], AbstractContextManager[ModuleCase]]
"""Builds the run in a precision, None for its own, for the length of a block."""


def prove(device: torch.device, make: Make, *, ops: Sequence[str] | None, seconds: float) -> Iterator[Check]:
    """Check a machine, the ops that it runs, and the steps of a run.

    A wrong kernel is disabled in this process and in later ones, so that the steps are checked as the run will take
    them.

    Args:
        device: Device of the run.
        make: Builds the run.
        ops: Ops to check; None: all ops of the device.
        seconds: Time limit of each case of an op.

    Raises:
        UsageError: An op does not exist, or the run cannot start.
    """
    selection = select(backends(device), ops)
    yield from environment(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calls.pt"
        calls = Calls()
        with calls.record(), make(None) as case:
            if case.no_vmap is None:
                _take_step(case)
        calls.save(path)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # free memory for the checking processes
        yield from check_operations(device, selection, path, seconds)
    try:
        yield from _check_module(make)
    except torch.OutOfMemoryError as error:
        yield Check("module", "steps", None, f"not compared: {line(error)}")
    except Exception as error:
        if not kernels.is_device_fault(error):
            raise
        yield Check("module", "steps", f"the device failed: {line(error)}")


def _check_module(make: Make) -> Iterator[Check]:
    with make("fp64") as case:
        if case.random:
            yield Check("module", "steps", None, "not compared: the model draws random numbers itself")
            return
        exact = plain_steps(case)
        if case.no_vmap is None:
            yield from check_exact(case, exact)
        else:
            yield Check("module", "stacked", None, f"not used: vmap does not take the model ({case.no_vmap})")
    with make(None) as case:
        yield from check_own(case, exact)


def _take_step(case: ModuleCase) -> None:
    """Take one stacked step and sum a mean, to record their kernel calls."""
    problem = case.problem
    device, source = problem.numerics.device, problem.source
    clients = min(RECORD_CLIENTS, case.clients)
    stack = problem.stack(clients)
    params = stack.params
    ids = torch.arange(clients * case.batch, device=source.index_device) % len(source)
    rates = torch.zeros(1, clients, dtype=params.dtype, device=device)
    plan = RoundPlan(torch.arange(clients, device=device), 0, rates, ids.view(1, clients, case.batch))
    StackedExecutor(problem).run_round(stack, plan)
    total = torch.zeros(problem.layout.n_params, dtype=torch.float64, device=device)
    kernels.get("client_mean", device=device)(params, total, 1.0)
