"""fastlocal.train beside the plain loop: the same model from every executor, or a refusal of one line."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlocal
from fastlocal.common.errors import UsageError
from tests.helpers.plain_loop import Data, Loss, LossOf, Recipe, Trained, plain_train

EXECUTORS = ("looped", "stacked", "threaded", "auto")
TWO = ("looped", "stacked")
"""What most cases are judged by: `threaded` takes looped steps, or traced ones, and `auto` one of the others."""
TOLERANCE = 1e-9
TEST_SAMPLES = 8
SELDOM = 1e6
"""Minutes between saves that nobody reads."""

MakeModel = Callable[[], nn.Module]


def train(
    make_model: MakeModel, data: Data, loss: Loss | LossOf, directory: Path, recipe: Recipe, **settings: Any
) -> fastlocal.Run:
    """Train on `data`, tested on its first samples after the last round; the user's module must come out as it was."""
    module = make_model()
    loss = loss.make(module) if isinstance(loss, LossOf) else copy.deepcopy(loss)
    before = [value.clone() for value in (*module.parameters(), *module.buffers())]
    values: dict[str, Any] = {"test": tuple(half[:TEST_SAMPLES] for half in data), "precision": "fp64", "device": "cpu"}
    values |= {"eval_every": recipe.rounds, "save_minutes": SELDOM, **settings}
    run = fastlocal.train(
        module, data, loss=loss, directory=directory, progress=False, **dataclasses.asdict(recipe), **values
    )
    after = [*module.parameters(), *module.buffers()]
    assert all(map(torch.equal, before, after)), "the user's module has changed"
    assert all(value.grad is None for value in module.parameters()), "gradients are left in the user's module"
    return run


@dataclass(frozen=True)
class Verdict:
    """took: the executor that trained as wanted, or None        refused: why it was refused, or None"""

    took: str | None = None
    refused: str | None = None


def judge(
    make_model: MakeModel,
    data: Data,
    loss: Loss | LossOf,
    wanted: Trained,
    executor: str,
    recipe: Recipe,
    **settings: Any,
) -> Verdict:
    """Return whether the run trains as wanted or is refused; raises AssertionError for all else."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        try:
            run = train(make_model, data, loss, directory, recipe, executor=executor, **settings)
        except UsageError as refusal:
            said = str(refusal)
            assert said.strip() and "\n" not in said, f"{executor}: not one line: {said}"
            blamed = re.search(r": (fails on (a batch|outputs)|its backward pass fails)", said)
            unmet = "out of range" in said  # in a sample that the loop does not come to
            assert blamed is None or unmet, f"{executor}: a wrong blame, as the plain loop trains: {said}"
            late = "left alone in the first steps" in said
            assert late or not directory.exists(), f"{executor}: refused after the run directory was made: {said}"
            return Verdict(refused=said)
        assert_model(run.model, wanted, executor)
        rounds = len(wanted.losses) // len(run.history)  # since the evaluation before
        loss_wanted = sum(wanted.losses[-rounds:]) / rounds
        _assert_close(f"{executor}: train_loss", _number(run.history[-1]["train_loss"]), _number(loss_wanted))
        return Verdict(took=json.loads((directory / "config.json").read_text())["machine"]["executor"])


def assert_trains_as_plain(
    make_model: MakeModel,
    data: Data,
    loss: Loss | LossOf = F.cross_entropy,
    executors: Sequence[str] = TWO,
    *,
    may_refuse: Collection[str] = (),
    settings: dict[str, Any] | None = None,
    **recipe: Any,
) -> dict[str, str]:
    """Each of the executors gives the plain loop's model, but for those that may refuse to.

    may_refuse: executors that may raise a UsageError of one line before anything is written
    settings: further arguments of fastlocal.train        recipe: fields of Recipe
    Returns what was refused, by executor.
    """
    how = Recipe(**recipe)
    wanted = plain_train(make_model(), data, copy.deepcopy(loss), how)
    refused = {}
    for executor in executors:
        said = judge(make_model, data, loss, wanted, executor, how, **(settings or {})).refused
        if said is not None:
            assert executor in may_refuse, f"{executor}: refused: {said}"
            refused[executor] = said
    return refused


def assert_refused(
    make_model: MakeModel,
    data: Data,
    loss: Loss | LossOf = F.cross_entropy,
    executors: Sequence[str] = TWO,
    *,
    says: str = "",
    **recipe: Any,
) -> None:
    """Each of the executors refuses, in one line that holds `says`, before anything is written."""
    for executor in executors:
        with tempfile.TemporaryDirectory() as folder:
            try:
                train(make_model, data, loss, Path(folder) / "run", Recipe(**recipe), executor=executor)
            except UsageError as refusal:
                said = str(refusal)
                assert "\n" not in said and says in said, f"{executor}: {said!r}"
                assert not (Path(folder) / "run").exists(), f"{executor}: refused after the run directory was made"
            else:
                raise AssertionError(f"{executor}: trained")


def failure(
    make_model: MakeModel, data: Data, loss: Loss | LossOf, executor: str, recipe: Recipe, **settings: Any
) -> str:
    """How the run ends where the plain loop fails; AssertionError where that is not an error of one line."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(make_model, data, loss, Path(folder) / "run", recipe, executor=executor, **settings)
        except (ValueError, IndexError) as error:
            said = str(error)
            assert said.strip() and "\n" not in said, f"{executor}: not one line: {said}"
            return said
    raise AssertionError(f"{executor}: trained")


def assert_model(model: nn.Module, wanted: Trained, executor: str) -> None:
    found = {name: value.detach() for name, value in model.named_parameters()}
    assert list(found) == list(wanted.parameters), executor
    buffers = dict(model.named_buffers())
    for name, value in (wanted.parameters | wanted.buffers).items():
        _assert_close(f"{executor}: {name}", found[name] if name in found else buffers[name], value)


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _assert_close(name: str, found: Tensor, wanted: Tensor) -> None:
    """Within TOLERANCE of the norm of what is wanted, or of 1 where that is smaller."""
    assert (found.shape, found.is_complex()) == (wanted.shape, wanted.is_complex()), name
    if not (wanted.is_floating_point() or wanted.is_complex()):
        assert torch.equal(found, wanted), f"{name}: {found.tolist()}, not {wanted.tolist()}"
        return
    wide = torch.complex128 if wanted.is_complex() else torch.float64
    difference, size = (found.to(wide) - wanted.to(wide)).norm().item(), max(1.0, wanted.to(wide).norm().item())
    assert difference <= TOLERANCE * size, f"{name}: difference {difference / size:.3g}"
