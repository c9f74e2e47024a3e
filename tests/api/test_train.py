"""fastlocal.train on modules and tensors of one's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import fastlocal
from tests.helpers.table_fit import fit, perceptron, regression, table


class Samples:
    """A map-style Dataset of inputs and whatever targets."""

    def __init__(self, inputs: torch.Tensor, targets: Sequence[Any]) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        return self.inputs[index], self.targets[index]


def test_a_run_learns_reports_and_leaves_the_module_alone(tmp_path: Path) -> None:
    module = perceptron()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    run = fit(tmp_path, module, rounds=40, eval_every=10)
    assert [row["comm_round"] for row in run.history] == [10, 20, 30, 40]
    assert run.history[-1]["val_acc1"] > 0.9
    assert run.history[-1]["lr"] == 0.3
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == run.history
    (inputs, targets) = table()[1]
    accuracy = (run.model(inputs).argmax(1) == targets).double().mean().item()
    assert accuracy == pytest.approx(run.history[-1]["val_acc1"])
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    saved = torch.load(run.directory / "latest.pt", weights_only=True)
    perceptron().load_state_dict(saved)


def test_regression_with_its_own_loss(tmp_path: Path) -> None:
    (inputs, _), (held, _) = table()
    weights = torch.arange(8.0).unsqueeze(1) / 8
    run = fit(
        tmp_path,
        nn.Linear(8, 1),
        train=(inputs.numpy(), (inputs @ weights).numpy()),
        test=(held.numpy(), (held @ weights).numpy()),
        loss=nn.functional.mse_loss,
        lr=0.1,
        rounds=40,
    )
    assert run.history[-1]["val_loss"] < 1e-3 * run.history[0]["val_loss"]
    assert run.history[-1]["val_acc1"] is None and run.history[-1]["best_acc"] is None


def test_labels_of_any_integer_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inputs, labels), _ = table()
    wanted = fit(tmp_path, perceptron(), "int64", train=(inputs, labels), test=(inputs, labels), rounds=1)
    targets = {kind: labels.numpy().astype(kind) for kind in (np.uint8, np.uint16, np.int8, np.int32, np.bool_)}
    given: dict[str, Any] = {f"tensors of {kind}": (inputs, own) for kind, own in targets.items()}
    for kind in (np.uint16, np.bool_):
        given[f"samples of {kind}"] = Samples(inputs, [torch.tensor(label) for label in targets[kind]])
    for kind in (np.int8, np.bool_):
        given[f"numbers of {kind}"] = Samples(inputs, targets[kind].tolist())
    options: dict[str, Any] = {"loss": nn.CrossEntropyLoss(), "executor": "stacked", "rounds": 1, "progress": True}
    for number, (name, data) in enumerate(given.items()):
        found = fit(tmp_path, perceptron(), str(number), train=data, test=data, **options)
        assert found.history[0]["val_acc1"] == wanted.history[0]["val_acc1"], name
        assert "vmap" not in capsys.readouterr().err, name


@pytest.mark.parametrize("source", ["tensors", "samples"])
def test_label_maps_and_images_as_targets(tmp_path: Path, source: str) -> None:
    """Maps of uint8 labels are labels for any loss; uint8 images as targets reach a loss as they are."""
    images = torch.arange(48 * 16).remainder(256).to(torch.uint8).view(48, 1, 4, 4)
    seen: set[torch.dtype] = set()

    def error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.add(targets.dtype)
        if targets.dim() == outputs.dim():
            return nn.functional.mse_loss(outputs[:, :1], targets / 255)
        return nn.functional.cross_entropy(outputs, targets)

    for name, targets, wanted in (("maps", images[:, 0] % 2, torch.int64), ("images", images, torch.uint8)):
        data = (images / 255, targets) if source == "tensors" else Samples(images / 255, list(targets))
        seen.clear()
        fit(tmp_path, nn.Conv2d(1, 2, 1), name, train=data, test=data, loss=error, rounds=1, local_steps=1)
        assert seen == {wanted}


SAMPLES: list[tuple[Any, str]] = [
    ({"x": 1, "label": 0}, "is no pair of an input and a target (it is a dict with the keys 'x', 'label'; "),
    ((1.0, 2.0, 3.0), "is no pair of an input and a target (it is a tuple of 3 (float, float, float); "),
    (torch.zeros(2, 8), "is no pair of an input and a target (it is a tensor of float32 (2, 8); "),
    (None, "is no pair of an input and a target (it is None; "),
    ((torch.zeros(8), "cat"), "has a target that is no number (it is 'cat', a str; number the classes"),
    ((torch.zeros(8), None), "has a target that is no number (it is None; "),
    ((torch.zeros(8), {"label": 1}), "has a target that is no number (it is a dict with the keys 'label'; "),
    (((torch.zeros(8), torch.zeros(8)), 1), "has an input that is no tensor (it is a tuple of 2 (a tensor, "),
    (({"ids": torch.zeros(8)}, 1), "has an input that is no tensor (it is a dict with the keys 'ids'; join"),
    ((np.array(["a"]), 1), "has an input that is no tensor (it is an array of <U1 (1,); "),
    (([1.0, [2.0]], 1), "has an input that is no tensor (it is a list of 2 (float, list); "),
]


@pytest.mark.parametrize(
    ("sample", "says", "place"),
    [(*sample, 0) for sample in SAMPLES] + [(*sample, 7) for sample in (SAMPLES[0], SAMPLES[4])],
)
def test_a_dataset_that_gives_no_samples(tmp_path: Path, sample: Any, says: str, place: int) -> None:
    """The first sample is looked at before the run, any other as it is read."""
    (inputs, labels), test = table()

    class Odd(Samples):
        def __getitem__(self, index: int) -> Any:
            return sample if index == place else super().__getitem__(index)

    with pytest.raises(ValueError) as refused:
        fit(tmp_path, perceptron(), train=Odd(inputs[:48], labels.tolist()), test=test, rounds=1, local_steps=1)
    text = str(refused.value)
    assert f"sample {place} of the Dataset {says}" in text and "decoded" not in text and "\n" not in text


def test_a_diverged_model_does_not_replace_the_last_good_one(tmp_path: Path) -> None:
    module = nn.Linear(8, 1)
    with pytest.raises(fastlocal.NonFiniteLoss):
        fit(tmp_path, module, loss=nn.functional.mse_loss, lr=5.0, rounds=60, **regression())
    state = torch.load(tmp_path / "run" / "latest.pt", weights_only=True)
    module.load_state_dict(state)
    loss = nn.functional.mse_loss(module(regression()["test"][0]), regression()["test"][1])
    assert bool(loss.isfinite())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert lines and "null" not in lines.replace('_acc1": null', "").replace('best_acc": null', "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients": 0}, "clients 0"),
        ({"local_steps": 0}, "local_steps=0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"momentm": 0.9}, "did you mean 'momentum'"),
        ({"momentum": 1.0}, r"momentum=1.0: must be in \[0, 1\)"),
        ({"clients": 100}, r"\(100 clients x batch_size=8\): more than the 240 training .*use replacement=True"),
        ({"train": (torch.zeros(4, 8), torch.zeros(3).long())}, "4 inputs but 3 targets"),
        ({"train": (torch.zeros(0, 8), torch.zeros(0).long())}, "train: is empty"),
        ({"train": (torch.full((64, 8), float("nan")), torch.zeros(64).long())}, "train inputs: holds NaN"),
        ({"train": (torch.zeros(64, 5), torch.zeros(64).long())}, r"fails on a batch of shape \(4, 5\)"),
        ({"train": (torch.zeros(64, 8), torch.full((64,), 2))}, "has 2 outputs, but labels go from 0 to 2"),
        ({"loss": lambda outputs, targets: outputs.sum(dim=1)}, "must return one number per batch"),
        ({"bn": True}, "bn=True: Sequential has no BatchNorm; use bn=False"),
        ({"executor": "looped", "compile": True}, 'compile=True: is for executor="stacked", and this run'),
        ({"device": "tpu"}, 'device="tpu": unknown'),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: must be"),
        ({"source": "dali"}, r'source="dali": the inputs are not uint8 images; use source="resident" or "torch"'),
        ({"mean": (0.5,), "std": (0.5,)}, "mean, std: give both, for uint8 images"),
        ({"test": (torch.zeros(8, 5), torch.zeros(8).long())}, r"be evaluated on test samples of shape \(5, 5\)"),
        ({"precision": "x"}, "precision is 'x', not 'fp32'"),
        ({"executor": "x"}, "executor is 'x'"),
        ({"wandb": "x"}, "wandb is 'x'"),
        ({"chunk": 2.5}, "chunk is 2.5, not int"),
        ({"batch_size": 4.0}, "batch_size is 4.0, not int"),
        ({"lr": "a"}, "lr is 'a', not float"),
        ({"epochs": 3}, "epochs, rounds: give one of them"),
        ({"sync": "qsr", "qsr_alpha": 0.3, "lr_schedule": "cosine"}, 'lr_schedule="cosine": with sync="qsr" .* epochs'),
        ({"qsr_alpha": 0.3}, 'qsr_alpha: is for sync="qsr"'),
        ({"resume_pth": "start.pt"}, "resume_pth: is no setting"),
        ({"train": "digits"}, r"give a pair \(inputs, targets\)"),
        ({"test": (np.array(["a"]), np.array([1]))}, r"test inputs: is an array of <U1 \(1,\), not a tensor or"),
        ({"train": (torch.zeros(2, 8), ["cat", "dog"])}, r"targets: is a list of 2 \(str, str\).* numpy.unique\(names"),
        ({"train": (torch.zeros(2, 8), None)}, "train targets: is None, not a tensor or an array of numbers"),
        ({"train": ([torch.zeros(8)] * 2, [0, 1])}, "train inputs: is a list of 2 .*; torch.stack makes one tensor"),
        ({"train": {"x": 1, "y": 2}}, r"train: is a dict with the keys 'x', 'y'; give a pair \(inputs, targets\)"),
        ({"train": None}, "train: is None; give a pair"),
        ({"train": fastlocal.per_client([table()]), "partition": "iid"}, "partition: with per_client, samples have"),
        ({"train": DataLoader([(1, 2)])}, "train: is a DataLoader; give a pair .*, such as its .dataset"),
    ],
)
def test_mistakes_are_value_errors_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, perceptron(), **options)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_names_round_step_and_client(tmp_path: Path) -> None:
    with pytest.raises(fastlocal.NonFiniteLoss, match=r"round \d+, step \d+, client \d+"):
        fit(tmp_path, nn.Linear(8, 1), loss=nn.functional.mse_loss, lr=1e18, **regression())
    assert fit(tmp_path, nn.Linear(8, 1), "on", on_nan="continue", loss=nn.functional.mse_loss, lr=1e18, **regression())


def test_a_run_directory_is_not_reused_unasked(tmp_path: Path) -> None:
    fit(tmp_path, perceptron(), rounds=1)
    with pytest.raises(ValueError, match="already holds a run"):
        fit(tmp_path, perceptron(), rounds=1)
    again = fit(tmp_path, perceptron(), rounds=2, overwrite=True)
    assert len((again.directory / "metrics.jsonl").read_text().splitlines()) == 2


def test_epochs_instead_of_rounds(tmp_path: Path) -> None:
    """240 samples are 5 steps of 6 clients with 8 each; H grows over the cosine: (0.45 / 0.173)^2 is 6.7 at step 9."""
    rule = {"sync": "qsr", "qsr_alpha": 0.45, "lr_schedule": "cosine"}
    run = fit(tmp_path, perceptron(), rounds=None, epochs=4, **rule)
    assert [row["iter"] for row in run.history] == [2, 4, 6, 9, 15, 20]
    assert run.history[-1]["epoch"] == 4 and run.history[-1]["lr"] == 0


def test_resume_goes_on_to_more_rounds(tmp_path: Path) -> None:
    values: dict[str, Any] = {"momentum": 0.9, "eval_every": 2}
    whole = fit(tmp_path, perceptron(), "whole", **values)
    fit(tmp_path, perceptron(), "parts", rounds=5, resume=True, **values)
    parts = fit(tmp_path, perceptron(), "parts", resume=True, **values)
    assert parts.history == whole.history
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[name])
    again = fit(tmp_path, perceptron(), "parts", resume=True, **values)
    assert again.history == whole.history and torch.equal(again.model[0].weight, whole.model[0].weight)  # type: ignore[index]


def test_what_resume_refuses(tmp_path: Path) -> None:
    fit(tmp_path, perceptron(), rounds=2)
    wider = nn.Sequential(nn.Linear(8, 17), nn.Tanh(), nn.Linear(17, 2))
    normed = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16, affine=False), nn.Linear(16, 2))
    for module, options, said in (
        (perceptron(), {"lr": 0.2}, "lr=0.2: the run"),
        (wider, {}, "row is"),
        (normed, {}, "bn=True"),
        (perceptron(), {"overwrite": True}, "overwrite"),
        (perceptron(), {"directory": None}, "directory"),
    ):
        with pytest.raises(ValueError, match=said):
            fit(tmp_path, module, resume=True, **options)
