"""Torch's own losses: the test loss of all samples in one call, and the samples that count."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import fastlocal
from fastlocal.common.errors import UsageError
from fastlocal.data.sources.resident import ResidentSource
from fastlocal.data.types import Split
from fastlocal.params.losses import cross_entropy, move_loss
from fastlocal.params.precision import Numerics
from fastlocal.training import evaluation
from fastlocal.training.evaluation import Evaluation, evaluate

CPU = torch.device("cpu")
WEIGHT = torch.tensor([0.2, 1.0, 3.5, 0.7], dtype=torch.float64)
SAMPLES, BATCH = 45, 7


class Alone:
    """A world of two ranks in one process: the second's sums are known when the first exchanges its own."""

    size = 2

    def __init__(self, rank: int, told: list[Any]) -> None:
        self.rank, self.told = rank, told

    def all_gather_object(self, own: Any, what: str) -> list[Any]:
        self.told.append(own)
        return [own, self.told[0]] if self.rank == 0 else [[], own]


def evaluated(loss: Any, inputs: Tensor, targets: Tensor, topk: tuple[int, ...] = (), ranks: int = 1) -> Evaluation:
    """The loss and accuracies of the inputs as outputs, in float64 and batches of 7."""
    source = ResidentSource(
        Split(inputs, targets), mean=None, std=None, augment=False, seed=0, device=CPU, dtype=torch.float64
    )
    given: dict[str, Any] = {"loss": loss, "topk": topk, "numerics": Numerics(CPU, torch.float64, None)}
    told: list[Any] = []
    if ranks == 2:
        try:
            evaluate(nn.Identity(), source, **given, world=Alone(1, told))  # type: ignore[arg-type]
        except IndexError:
            pass  # it has no sums of the first rank
        return evaluate(nn.Identity(), source, **given, world=Alone(0, told))  # type: ignore[arg-type]
    return evaluate(nn.Identity(), source, **given)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(evaluation.BATCH, "cpu", BATCH)


def labelled(ignored: int | None, shape: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Scores of 4 classes and labels, a third of them ignored, and all of the second batch."""
    generator = torch.Generator().manual_seed(3)
    outputs = torch.randn(SAMPLES, 4, *shape, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 4, (SAMPLES, *shape), generator=generator)
    if ignored is not None:
        targets[torch.rand(targets.shape, generator=generator) < 0.3] = ignored
        targets[BATCH : 2 * BATCH] = ignored
    return outputs, targets


class Own(nn.CrossEntropyLoss):
    """One of torch's in all but its name."""


LABEL_LOSSES: dict[str, tuple[Any, int | None, tuple[int, ...]]] = {
    "plain": (nn.CrossEntropyLoss(), None, ()),
    "default": (cross_entropy, -100, ()),
    "ignored": (nn.CrossEntropyLoss(), -100, ()),
    "a class is ignored": (nn.CrossEntropyLoss(ignore_index=2), 2, ()),
    "weights": (nn.CrossEntropyLoss(weight=WEIGHT), None, ()),
    "weights and ignored": (Own(weight=WEIGHT, ignore_index=-1), -1, ()),
    "smoothed": (nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=0, label_smoothing=0.2), 0, ()),
    "smoothed without weights": (nn.CrossEntropyLoss(label_smoothing=0.1), -100, ()),
    "sum": (nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum"), -100, ()),
    "images": (nn.CrossEntropyLoss(weight=WEIGHT), -100, (2, 3)),
    "likelihood": (nn.NLLLoss(weight=WEIGHT, ignore_index=3), 3, ()),
    "function": (F.cross_entropy, -100, ()),
    "bound": (partial(partial(F.cross_entropy, weight=WEIGHT), ignore_index=1), 1, ()),
    "bound likelihood": (partial(F.nll_loss, ignore_index=9), 9, (5,)),
    "bound sum": (partial(F.nll_loss, reduction="sum"), -100, ()),
    "older words": (partial(F.cross_entropy, size_average=False), -100, ()),
}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", LABEL_LOSSES)
def test_losses_of_labels_are_those_of_one_call(kind: str, ranks: int) -> None:
    loss, ignored, shape = LABEL_LOSSES[kind]
    outputs, targets = labelled(ignored, shape)
    result = evaluated(loss, outputs, targets, () if shape else (1, 3), ranks)
    assert result.loss == pytest.approx(loss(outputs, targets).item(), rel=1e-12)
    if shape:
        return
    counted = targets != ignored if ignored is not None else torch.ones_like(targets, dtype=torch.bool)
    order = outputs[counted].argsort(dim=1, descending=True)
    wanted = [(order[:, :k] == targets[counted][:, None]).any(dim=1).double().mean().item() for k in (1, 3)]
    assert result.accuracies == pytest.approx(wanted, rel=1e-12)


OF_VALUES: dict[str, Any] = {
    "squares": nn.MSELoss(),
    "sum of squares": nn.MSELoss(reduction="sum"),
    "absolute": nn.L1Loss(),
    "smooth": nn.SmoothL1Loss(beta=0.3, reduction="sum"),
    "huber": partial(F.huber_loss, delta=0.5),
    "binary": nn.BCEWithLogitsLoss(pos_weight=WEIGHT),
    "binary sum": partial(F.binary_cross_entropy_with_logits, weight=WEIGHT, reduction="sum"),
    "divergence": nn.KLDivLoss(reduction="batchmean"),
    "mean divergence": F.kl_div,
    "probabilities": nn.CrossEntropyLoss(weight=WEIGHT),
    "poisson": nn.PoissonNLLLoss(reduction="sum"),
    "gaussian": partial(F.gaussian_nll_loss, var=0.3),
    "margins": nn.MultiLabelSoftMarginLoss(weight=WEIGHT),
}


@pytest.mark.parametrize("kind", OF_VALUES)
def test_other_losses_of_torch_are_those_of_one_call(kind: str) -> None:
    outputs, loss = labelled(None)[0], OF_VALUES[kind]
    targets = torch.rand(SAMPLES, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = evaluated(loss, outputs, targets)
    assert result.loss == pytest.approx(loss(outputs, targets).item(), rel=1e-12)


def test_any_other_loss_is_the_mean_of_batches_weighted_by_their_sizes() -> None:
    outputs, targets = labelled(None)

    class Largest(nn.MSELoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return (input[:, 0] - target).abs().max()

    for loss in (Largest(reduction="sum"), lambda out, y: (out[:, 0] - y).abs().max()):
        parts = zip(outputs.split(BATCH), targets.split(BATCH), strict=True)
        wanted = sum((out[:, 0] - y).abs().max().item() * len(y) for out, y in parts) / SAMPLES
        assert evaluated(loss, outputs, targets).loss == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("label", [4, -1, 1000])
def test_a_label_that_is_no_output_is_named(label: int, ranks: int) -> None:
    outputs, targets = labelled(-100)
    targets[31] = label
    with pytest.raises(
        UsageError, match=f"^test: sample 31 has label {label}; the model has 4 outputs, for labels 0 to 3$"
    ):
        evaluated(nn.CrossEntropyLoss(), outputs, targets, (1,), ranks)


def test_a_test_set_of_ignored_targets_is_refused() -> None:
    outputs, targets = labelled(-100)
    with pytest.raises(UsageError, match="^test: the loss counts none of the 45 targets"):
        evaluated(nn.CrossEntropyLoss(), outputs, torch.full_like(targets, -100))
    assert evaluated(nn.CrossEntropyLoss(reduction="sum"), outputs, torch.full_like(targets, -100)).loss == 0


CLIENTS, STEPS, ROUNDS, SIZE, RATE = 3, 2, 4, 4, 0.4


def data(ignored: int | None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    targets = torch.randint(0, 3, (48,), generator=generator)
    if ignored is not None:
        targets[torch.rand(48, generator=generator) < 0.5] = ignored
    return torch.randn(48, 5, generator=generator, dtype=torch.float64), targets


def module() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def plain_loop(
    loss: Callable[[Tensor, Tensor], Tensor], ignored: int
) -> tuple[nn.Module, list[float], list[float], int]:
    """The averaged module, each round's training loss and accuracy, and how many batches had no target that counts."""
    inputs, targets = data(ignored)
    averaged, losses, accuracies, empty = module(), [], [], 0
    for number in range(ROUNDS):
        copies = [copy.deepcopy(averaged) for _ in range(CLIENTS)]
        values, hits, counted = [], 0, 0
        for client, local in enumerate(copies):
            optimizer = torch.optim.SGD(local.parameters(), lr=RATE)
            for step in range(number * STEPS, (number + 1) * STEPS):
                epoch, within = divmod(step, len(inputs) // (CLIENTS * SIZE))
                order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(epoch))
                ids = order[(within * CLIENTS + client) * SIZE :][:SIZE]
                optimizer.zero_grad()
                outputs, there = local(inputs[ids]), targets[ids] != ignored
                value = loss(outputs, targets[ids])
                value.backward()
                optimizer.step()
                values += [value.item()] if there.any() else []
                empty += not there.any()
                hits += int((outputs.argmax(dim=1) == targets[ids])[there].sum())
                counted += int(there.sum())
        losses.append(math.fsum(values) / len(values))
        accuracies.append(hits / counted)
        with torch.no_grad():
            for parameters in zip(averaged.parameters(), *(local.parameters() for local in copies), strict=True):
                parameters[0].copy_(torch.stack(parameters[1:]).mean(dim=0))
    return averaged, losses, accuracies, empty


@pytest.mark.parametrize(
    ("loss", "ignored", "executor", "form"),
    [
        (nn.CrossEntropyLoss(), -100, "stacked", "tensors"),
        (nn.CrossEntropyLoss(), -100, "threaded", "dataset"),
        (nn.CrossEntropyLoss(weight=WEIGHT[:3], ignore_index=1), 1, "looped", "dataset"),
        (partial(F.cross_entropy, ignore_index=7, label_smoothing=0.1), 7, "threaded", "tensors"),
        (partial(F.cross_entropy, weight=WEIGHT[:3], ignore_index=2), 2, "stacked", "dataset"),
    ],
    ids=["default", "read", "weights", "smoothed", "bound"],
)
def test_runs_count_what_the_loss_counts(loss: Any, ignored: int, executor: str, form: str, tmp_path: Path) -> None:
    wanted, losses, accuracies, empty = plain_loop(loss, ignored)
    assert empty > 0, "or the case shows nothing"
    inputs, targets = data(ignored)
    train: Any = (inputs, targets) if form == "tensors" else TensorDataset(inputs, targets)
    run = fastlocal.train(
        module(), train, (inputs, targets), loss=loss, clients=CLIENTS, local_steps=STEPS, batch_size=SIZE,
        rounds=ROUNDS, lr=RATE, executor=executor, precision="fp64", progress=False, directory=tmp_path / "run",
        chunk=2,
    )  # fmt: skip
    for value, expected in zip(run.model.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    assert [row["train_loss"] for row in run.history] == pytest.approx(losses, rel=1e-9)
    assert [row["train_acc1"] for row in run.history] == pytest.approx(accuracies, rel=1e-12)
    outputs, counted = wanted(inputs), targets != ignored
    assert run.history[-1]["val_loss"] == pytest.approx(loss(outputs, targets).item(), rel=1e-9)
    right = (outputs.argmax(dim=1) == targets)[counted].double().mean().item()
    assert run.history[-1]["val_acc1"] == pytest.approx(right, rel=1e-12)


def test_noise_leaves_ignored_targets_alone(tmp_path: Path) -> None:
    inputs, targets = data(-100)
    targets[:] = -100
    targets[0] = 1
    run = fastlocal.train(
        module(), (inputs, targets), (inputs, targets), loss=nn.CrossEntropyLoss(), clients=1, batch_size=47, rounds=1,
        label_noise=True, noise_p=1.0, progress=False, directory=tmp_path / "run", seed=0,
    )  # fmt: skip
    assert run.history[0]["train_loss"] > 0 and run.history[0]["train_acc1"] in (0.0, 1.0)


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_tensors_of_a_loss_take_the_run_s_type_in_a_copy(precision: str, tmp_path: Path) -> None:
    inputs, targets = data(None)
    for name, loss in {
        "module": nn.CrossEntropyLoss(weight=WEIGHT[:3].float()),
        "function": partial(F.cross_entropy, weight=WEIGHT[:3].float()),
        "own": Weighted(WEIGHT[:3].float()),
    }.items():
        run = fastlocal.train(
            module(), (inputs, targets), (inputs, targets), loss=loss, clients=2, batch_size=6, rounds=2,
            precision=precision, progress=False, directory=tmp_path / name,
        )  # fmt: skip
        outputs = run.model(inputs.to(next(run.model.parameters()).dtype)).double()
        wanted = F.cross_entropy(outputs, targets, weight=WEIGHT[:3])
        exact = precision == "fp64" and name != "own"  # another callable's is the mean of batches
        assert run.history[-1]["val_loss"] == pytest.approx(wanted.item(), rel=1e-6 if exact else 0.1)
        kept = loss.keywords["weight"] if isinstance(loss, partial) else loss.weight
        assert kept.dtype == torch.float32


class Weighted(nn.Module):
    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (F.cross_entropy(outputs, targets, reduction="none") * self.weight[targets]).sum() / self.weight[
            targets
        ].sum()


def test_a_loss_without_tensors_is_the_user_s_own_object() -> None:
    loss = nn.CrossEntropyLoss()
    assert move_loss(loss, CPU, torch.float64) is loss and move_loss(F.mse_loss, CPU, torch.float64) is F.mse_loss
