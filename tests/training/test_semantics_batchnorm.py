"""BatchNorm's running statistics and the evaluation, against arithmetic written out, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastlocal.config.schema import RunConfig
from fastlocal.data.sources.resident import ResidentSource
from fastlocal.data.types import DataSet, Split
from fastlocal.models.batchnorm import has_batchnorm, re_estimate
from fastlocal.params.losses import count_correct, cross_entropy
from fastlocal.params.precision import Numerics
from fastlocal.runs.build import build_run
from fastlocal.runs.run import train
from fastlocal.training.evaluation import evaluate
from tests.helpers import small_models

NUMERICS = Numerics(torch.device("cpu"), torch.float64, None)


def chain() -> nn.Sequential:
    """Two BatchNorms, of which the second sees what the first made of a batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4)
        ).double()


def by_hand(module: nn.Sequential, batches: list[Tensor]) -> list[Tensor]:
    """Running mean and variance of both norms: means over batches of each batch's own mean and unbiased variance."""
    conv, first, linear, _ = (module[index] for index in (0, 1, 4, 5))
    assert isinstance(first, nn.BatchNorm2d)
    rows: list[list[Tensor]] = [[], [], [], []]
    for inputs in batches:
        maps = conv(inputs)
        mean, square = maps.mean(dim=(0, 2, 3)), maps.var(dim=(0, 2, 3), unbiased=False)
        rows[0].append(mean)
        rows[1].append(maps.var(dim=(0, 2, 3), unbiased=True))
        shape = (1, -1, 1, 1)
        maps = (maps - mean.view(shape)) / (square.view(shape) + first.eps).sqrt()
        maps = maps * first.weight.view(shape) + first.bias.view(shape)
        values = linear(maps.clamp(min=0).flatten(1))
        rows[2].append(values.mean(dim=0))
        rows[3].append(values.var(dim=0, unbiased=True))
    return [torch.stack(row).mean(dim=0).detach() for row in rows]


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_the_means_over_the_batches(count: int, momentum: float | None) -> None:
    module = chain()
    first, second = module[1], module[5]
    assert isinstance(first, nn.BatchNorm2d) and isinstance(second, nn.BatchNorm1d)
    for norm in (first, second):
        norm.momentum = momentum  # type: ignore[assignment]
        norm.running_mean, norm.running_var = torch.full_like(norm.weight, 7.0), torch.full_like(norm.weight, 9.0)
        norm.running_mean.requires_grad_(False)
        norm.running_var.requires_grad_(False)
        norm.num_batches_tracked = torch.tensor(5)
    generator = torch.Generator().manual_seed(count)
    batches = [torch.randn(6, 2, 4, 4, dtype=torch.float64, generator=generator) for _ in range(count)]
    re_estimate(module, iter(batches), local_steps=11)
    got = [first.running_mean, first.running_var, second.running_mean, second.running_var]
    for value, wanted in zip(got, by_hand(module, batches), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    for norm in (first, second):
        assert int(norm.num_batches_tracked) == 5 + 11 + count
        assert norm.momentum == momentum


def test_has_batchnorm() -> None:
    assert has_batchnorm(chain()) and has_batchnorm(nn.BatchNorm3d(2))
    assert not has_batchnorm(nn.Sequential(nn.GroupNorm(1, 2), nn.BatchNorm1d(2, track_running_stats=False)))


def run(tmp_path: Path, data: DataSet, **values: Any) -> Path:
    config = RunConfig().with_values(
        **{
            "batch_size": 4,
            "total_batch_size": 12,
            "epochs": 2,
            "steps_per_epoch": 4,
            "step1": 2,
            "save_freq1": 1,
            "precision": "fp64",
            "device": "cpu",
            "resume_pth": "start.pt",
            "log_pth": str(tmp_path / "run"),
            **values,
        }
    )
    ready = build_run(config, data, lambda: small_models.make("batchnorm"), cross_entropy, model_flag="model")
    train(ready, overwrite=False, make_loggers=lambda path: [])
    return tmp_path / "run"


def tracked(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["norm1.num_batches_tracked"])


def test_num_batches_tracked_counts_client_0s_steps_and_the_batches(tmp_path: Path) -> None:
    folder = run(tmp_path, small_models.images(), bn_batches=3, eval_on_start=True, eval_freq1=2, aug=True)
    counts = [
        tracked(folder / f"H=2-1-1_epoch={epoch}_round={comm_round}_phase_round={comm_round}.pt")
        for epoch, comm_round in ((0, 0), (1, 2), (2, 4))
    ]
    assert counts == [3, 3 + 4 + 3, 3 + 4 + 3 + 4 + 3]


def test_eval_on_start_estimates_for_the_start_weights_on_epoch_0(tmp_path: Path) -> None:
    data = small_models.images()
    folder = run(tmp_path, data, bn_batches=2, eval_on_start=True, aug=False, seed=6)
    state = torch.load(folder / "H=2-1-1_epoch=0_round=0_phase_round=0.pt", weights_only=True)
    module = small_models.make("batchnorm")
    assert torch.equal(state["conv1.weight"], module.state_dict()["conv1.weight"])
    order = torch.randperm(60, generator=torch.Generator().manual_seed(6))
    mean, std = (torch.tensor(value, dtype=torch.float64).view(-1, 1, 1) for value in (data.mean, data.std))
    inputs = [(data.train.inputs[ids].double() / 255 - mean) / std for ids in (order[:4], order[4:8])]
    maps = [torch.nn.functional.conv2d(batch, state["conv1.weight"], padding=1) for batch in inputs]
    wanted = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in maps]).mean(dim=0)
    torch.testing.assert_close(state["norm1.running_mean"], wanted, rtol=1e-12, atol=1e-12)
    wanted = torch.stack([batch.var(dim=(0, 2, 3)) for batch in maps]).mean(dim=0)
    torch.testing.assert_close(state["norm1.running_var"], wanted, rtol=1e-12, atol=1e-12)


def test_statistics_of_a_bfloat16_run_are_those_that_its_evaluation_meets(tmp_path: Path) -> None:
    states = []
    for precision in ("fp32", "bf16"):
        values: dict[str, Any] = {"eval_on_start": True, "precision": precision, "bn_batches": 5, "aug": True}
        folder = run(tmp_path / precision, small_models.images(), **values)
        states.append(torch.load(folder / "H=2-1-1_epoch=0_round=0_phase_round=0.pt", weights_only=True))
    for name in ("norm1.running_mean", "norm2.running_var", "norm3.running_mean"):
        full, low = (state[name] for state in states)
        assert low.dtype == torch.float32 and not torch.equal(full, low)
        torch.testing.assert_close(full, low, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("count", [1, 499, 500, 1003])
def test_evaluation_of_any_number_of_samples(count: int) -> None:
    data = small_models.images(train=1, test=count)
    source = ResidentSource(
        data.test, mean=data.mean, std=data.std, augment=False, seed=0, device=NUMERICS.device, dtype=torch.float64
    )
    module = small_models.make("batchnorm").train()
    result = evaluate(module, source, loss=cross_entropy, topk=(1, 2, 5), numerics=NUMERICS)
    assert module.training
    outputs = module.eval()(source.read_range(0, count).inputs)
    targets = data.test.targets
    assert result.loss == pytest.approx(torch.nn.functional.cross_entropy(outputs, targets).item(), rel=1e-12)
    order = outputs.argsort(dim=1, descending=True)
    wanted = [(order[:, :k] == targets[:, None]).any(dim=1).double().mean().item() for k in (1, 2)]
    assert result.accuracies == pytest.approx((*wanted, 1.0))


def test_evaluation_of_targets_that_are_no_labels() -> None:
    split = Split(torch.randn(7, 3), torch.randn(7, 2))
    as_they_are = {"mean": None, "std": None, "augment": False}
    source = ResidentSource(split, **as_they_are, seed=0, device=NUMERICS.device, dtype=torch.float64)
    module = nn.Linear(3, 2).double()
    result = evaluate(module, source, loss=nn.functional.mse_loss, topk=(), numerics=NUMERICS)
    assert result.accuracies == ()
    wanted = nn.functional.mse_loss(module(split.inputs.double()), split.targets.double()).item()
    assert result.loss == pytest.approx(wanted, rel=1e-12)


def test_correct_predictions_of_many_clients() -> None:
    outputs = torch.tensor([[[3.0, 2, 1], [1, 2, 3]], [[1, 3, 2], [2, 1, 3]]])
    counts = count_correct(outputs, torch.tensor([[0, 0], [2, 2]]), (1, 2, 5))
    assert counts.sum(dim=0).tolist() == [2.0, 3.0, 4.0]
