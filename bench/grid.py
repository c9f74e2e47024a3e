"""Which cases bench.throughput may train, and which of them fit a machine."""

from __future__ import annotations

import typing
from collections.abc import Sequence

import torch

from bench.case import Case
from bench.loops import LOOPS, ON_CPU_ONLY, ON_GPU_ONLY, REFERENCE
from fastlocal.common.machine import available
from fastlocal.config.schema import Executor

STEPS = {"mlp": 8, "cnn": 4, "resnet20_gn": 2, "resnet56": 2}
"""Local steps per round of the grid's models."""
CLIENTS, BATCHES = (1, 8, 32, 128, 512, 2048), (8, 32, 128)
CPU_TARGETS = (
    Case("mlp", 64, 16, 8),
    Case("cnn", 32, 16, 4),
    Case("resnet20_gn", 8, 32, 2),
    Case("resnet20_gn", 8, 32, 2, "bf16"),
)
GPU_TARGETS = (
    Case("resnet56", 32, 128, 2, "tf32"),
    Case("resnet56", 32, 128, 2, "bf16"),
    Case("resnet20_gn", 512, 8, 2, "tf32"),
    *(Case("resnet20_gn", clients, 32, 2, "tf32") for clients in (128, 2048)),
)
SIZES = {"mlp": (395_000, 2.4e6), "cnn": (26_000, 1e7), "resnet20_gn": (273_000, 2.5e8), "resnet56": (856_000, 7.6e8)}
"""Parameters, and operations of one sample's forward and backward pass, to foresee what fits."""
RATE = {"cpu": 8e10, "cuda": 5e12}
"""Operations per second of a usual variant, to foresee what takes too long."""
STEP_SECONDS, PARAMETERS_PER_SECOND = 5e-4, 4e8
"""What a client-step takes beside its operations: its launches, and its parameters, momenta and gradients on the way
through memory (measured with small batches of mlp and cnn on two CPU cores)."""
COPIES = 4
"""Rows of parameters that one variant holds per client: parameters, momenta, gradients, and one on the way."""
PROCESS_BYTES = 7e8
ROUNDS = 5
"""At least, of every variant: of the gate, to warm up, and three that count."""


def grid(models: Sequence[str], clients: Sequence[int], batches: Sequence[int], precision: str) -> list[Case]:
    return [Case(model, n, batch, STEPS[model], precision) for model in models for n in clients for batch in batches]


def cases_of(words: str, clients: Sequence[int], batches: Sequence[int], precision: str) -> list[Case]:
    """`targets`, models of the grid, MODEL:CLIENTSxBATCH or MODEL:CLIENTSxBATCHxSTEPS, with commas between.

    Raises ValueError for another word.
    """
    if words == "targets":
        return list(GPU_TARGETS if torch.cuda.is_available() else CPU_TARGETS)
    found: list[Case] = []
    for word in words.split(","):
        model, colon, sizes = word.partition(":")
        numbers = sizes.split("x")
        right = len(numbers) in (2, 3) and all(number.isdigit() and int(number) for number in numbers)
        if model not in STEPS or (colon and not right):
            raise ValueError(f"{word!r}: give targets, {', '.join(STEPS)}, or MODEL:CLIENTSxBATCH[xSTEPS]")
        if colon:
            number, batch, steps = (*map(int, numbers), STEPS[model])[:3]
            found.append(Case(model, number, batch, steps, precision))
        else:
            found += grid([model], clients, batches, precision)
    return found


def variants(cases: Sequence[Case]) -> list[str]:
    """Every way to train them on this machine, the reference first, with the loop in 32 bits beside those in 16."""
    gpu = torch.cuda.is_available()
    loops = [name for name in LOOPS if name not in (ON_CPU_ONLY if gpu else ON_GPU_ONLY)]
    if any(case.precision == "bf16" for case in cases):
        loops.insert(1, f"{REFERENCE}, {'tf32' if gpu else 'fp32'}")
    return loops + [f"fastlocal {name}" for name in typing.get_args(Executor)]


def too_large(case: Case, wanted: Sequence[str], seconds: float) -> str:
    """Why a case is left out on this machine, or nothing.

    seconds: that it may take
    """
    gpu = torch.cuda.is_available()
    n_params, flops = SIZES[case.model]
    needed = len(wanted) * (case.clients * n_params * 4 * COPIES + PROCESS_BYTES)
    there = available(torch.device("cuda" if gpu else "cpu"))
    if needed > there:
        return f"its {len(wanted)} variants need {needed / 2**30:.0f} GiB together, {there / 2**30:.0f} are free"
    step = case.batch * flops / RATE["cuda" if gpu else "cpu"]
    if not gpu:
        step += STEP_SECONDS + n_params / PARAMETERS_PER_SECOND
    least = ROUNDS * len(wanted) * case.clients * case.local_steps * step
    if least > seconds:
        return f"{ROUNDS} rounds of its {len(wanted)} variants may take {least:.0f} s, above {seconds:.0f} s"
    return ""
