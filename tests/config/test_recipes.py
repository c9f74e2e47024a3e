"""The named runs: each one's numbers, as its paper and its published scripts have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastlocal.config.recipes import RECIPES
from fastlocal.config.schema import AREA_OF, RunConfig
from fastlocal.config.validation import check
from fastlocal.models import build
from fastlocal.schedule.owned_rounds import make_progress
from tests.helpers.command_line import metrics, run, write_npz

POST_LOCAL = {
    "dataset": "cifar10",
    "model": "resnet56",
    "batch_size": 128,
    "total_batch_size": 4096,
    "steps_per_epoch": 12,
    "start_lr": 0.01,
    "max_lr": None,
    "warm_up": False,
    "momentum": 0.0,
    "nesterov": False,
    "wd": 5e-4,
    "group_weight": True,
    "step1": 600,
    "eval_freq1": 1,
    "save_freq1": 6000,
    "resume": 250,
    "epochs": 250,
    "bn_batches": 100,
    "replacement": False,
    "label_noise": False,
    "aug": True,
    "eval_on_start": True,
}
LABEL_NOISE = {
    "dataset": "cifar10",
    "batch_size": 128,
    "total_batch_size": 4096,
    "steps_per_epoch": 12,
    "start_lr": 0.1,
    "max_lr": 0.1,
    "warm_up": True,
    "warmup_epochs": 1,
    "momentum": 0.0,
    "step1": 384,
    "save_freq1": 1000,
    "resume": 500,
    "replacement": True,
    "aug": False,
    "label_noise": True,
    "noise_p": 0.1,
    "eval_on_start": True,
}
OWN_SAMPLES = {"model": "cnn", "partition": "dirichlet", "alpha": 0.3, "population": 100, "batch_size": 20, "step1": 20}
OWN_EPOCHS = {"last_batch": "partial", "server_optimizer": "none", "lr_schedule": "constant", "step1": 1}
EXPECTED: dict[str, dict[str, Any]] = {
    "quickstart": {"dataset": "digits", "model": "mlp"},
    "fedavg-fashion-mnist": OWN_SAMPLES | {"dataset": "fashion_mnist", "server_optimizer": "none"},
    "diloco-char": {
        "dataset": "text",
        "model": "gpt_char",
        "partition": "iid",
        "step1": 50,
        "client_optimizer": "adamw",
        "beta1": 0.9,
        "beta2": 0.95,
        "wd": 0.1,
        "clip_norm": 1.0,
        "server_optimizer": "nesterov",
        "server_lr": 0.7,
        "server_momentum": 0.9,
        "n_layers": 2,
        "width": 64,
        "context": 64,
    },
    "fedadam-cifar10": OWN_SAMPLES | {"dataset": "image_folder", "server_optimizer": "adam", "lr_schedule": "cosine"},
    "niid-bench-fashion-mnist": OWN_EPOCHS
    | {"dataset": "fashion_mnist", "model": "lenet", "partition": "dirichlet", "alpha": 0.5, "local_epochs": 10.0}
    | {"partition_as": "niid-bench", "batch_size": 64, "momentum": 0.9, "wd": 1e-5, "client_state": "reset"},
    "mcmahan-2nn": OWN_EPOCHS
    | {"dataset": "fashion_mnist", "model": "2nn", "partition": "iid", "population": 100, "batch_size": 10}
    | {"local_epochs": 5.0, "momentum": 0.0, "wd": 0.0},
    "pfl-cifar10": OWN_EPOCHS
    | {"dataset": "image_folder", "model": "simple_cnn", "population": 1000, "batch_size": 10, "local_epochs": 1.0}
    | {"client_weights": "uniform", "aug": False},
    "fedprox-synthetic": OWN_EPOCHS
    | {"dataset": "fedprox_synthetic_1", "model": "logistic", "partition": "natural", "stragglers": 0.9}
    | {"algorithm": "fedprox", "prox_mu": 1.0, "local_epochs": 20.0, "batch_size": 10},
    "cifar10-post-local": POST_LOCAL,
    "cifar10-diffusion": POST_LOCAL,
    "cifar10-resnet-label-noise": LABEL_NOISE
    | {"model": "resnet56_gn", "n_groups": 8, "wd": 5e-4, "group_weight": True, "epochs": 500_000},
    "cifar10-vgg-label-noise": LABEL_NOISE | {"model": "vgg16", "wd": 0.0, "group_weight": False, "epochs": 50_000},
    "imagenet-post-local": {
        "dataset": "beton",
        "model": "torchvision.resnet50",
        "schedule": "epochs",
        "image_size": 224,
        "batch_size": 32,
        "total_batch_size": 8192,
        "steps_per_epoch": 156,
        "start_lr": None,
        "lr": 0.005,
        "warm_up": False,
        "momentum": 0.0,
        "wd": 1e-4,
        "group_weight": True,
        "step1": 26,
        "eval_freq1": 6,
        "save_freq1": 50,
        "resume": 100,
        "epochs": 50,
        "bn_batches": 100,
    },
}
# clients, steps, communication rounds, rate
DERIVED = {
    "fedavg-fashion-mnist": (10, 4000, 200, 0.1),
    "niid-bench-fashion-mnist": (10, 50, 50, 0.01),
    "mcmahan-2nn": (10, 200, 200, 0.05),
    "pfl-cifar10": (50, 1500, 1500, 0.1),
    "fedprox-synthetic": (10, 200, 200, 0.01),
    "cifar10-post-local": (32, 3000, 5, 0.32),
    "cifar10-diffusion": (32, 3000, 5, 0.32),
    "cifar10-resnet-label-noise": (32, 6_000_000, 15625, 0.1),
    "cifar10-vgg-label-noise": (32, 600_000, 1562, 0.1),
    "imagenet-post-local": (256, 7800, 300, 0.16),
}


def value(config: RunConfig, name: str) -> Any:
    return getattr(getattr(config, AREA_OF[name]), name)


def test_every_recipe_is_here() -> None:
    assert set(RECIPES) == set(EXPECTED) == {"quickstart", "diloco-char", "fedadam-cifar10", *DERIVED}


@pytest.mark.parametrize("name", RECIPES)
def test_numbers(name: str) -> None:
    config = RECIPES[name]()
    check(config)
    assert config.name == name
    assert {field: value(config, field) for field in EXPECTED[name]} == EXPECTED[name]
    for phase in (2, 3):
        for field in ("step", "eval_freq", "save_freq"):
            if name != "quickstart":
                assert value(config, f"{field}{phase}") == value(config, f"{field}1")


@pytest.mark.parametrize("name", DERIVED)
def test_what_follows_from_the_numbers(name: str) -> None:
    config = RECIPES[name]()
    progress = make_progress(config)
    clients, steps, rounds, rate = DERIVED[name]
    assert config.clients == clients
    assert progress.total_steps == steps
    averaged = [planned for planned in progress.rounds() if planned.averaged]
    assert len(averaged) == rounds
    # constant: no decay before the end
    for step in (progress.warm_up.steps, steps // 2, steps - 1):
        assert progress.learning_rate(step) == pytest.approx(rate, rel=1e-12)
    assert {planned.local_steps for planned in averaged} == {config.schedule.step1}


def plan(outcome: str) -> dict[str, str]:
    """The rows that a dry run prints, without the repeated one about memory."""
    return {line[:14].strip(): line[14:] for line in outcome.splitlines()}


@pytest.mark.parametrize(
    ("name", "rounds", "rate"),
    [
        ("cifar10-post-local", "5", "0.32"),
        ("cifar10-diffusion", "5", "0.32"),
        ("cifar10-resnet-label-noise", "15625", "0.1"),
        ("cifar10-vgg-label-noise", "1562, then 192 local steps that are not averaged", "0.1"),
    ],
)
def test_dry_runs_need_no_data(
    name: str,
    rounds: str,
    rate: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CIFAR-10 is neither there nor downloaded: its sizes are known."""
    monkeypatch.chdir(tmp_path)
    outcome = run(capsys, "train", name, "--dry-run", "--device", "cpu", "--chunk", "1")
    assert outcome.status == 0, outcome.err
    rows = plan(outcome.out)
    assert rows["clients"] == "32, 1 resident at once"
    assert rows["data"] == "cifar10, 50000 training and 10000 test samples"
    assert rows["batch"] == "128 per client, 4096 in all"
    assert rows["rounds"] == rounds
    assert rows["rate"].split(",")[0] == rate
    assert rows["note"].startswith("looped is by rule"), "nothing is timed"
    assert list(tmp_path.iterdir()) == []


def test_the_imagenet_plan_on_a_few_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    for half in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / half / name).mkdir(parents=True)
            for number in range(2):
                image = random.integers(0, 256, (40, 50, 3)).astype(np.uint8)
                Image.fromarray(image).save(tmp_path / half / name / f"{number}.png")
    folders = ("--dataset", "image_folder", "--train-pth", tmp_path / "train", "--val-pth", tmp_path / "val")
    words = ("--replacement", "--dry-run", "--device", "cpu", "--chunk", "1", "--image-size", "32")
    outcome = run(capsys, "train", "imagenet-post-local", *folders, *words, "--resume-pth", "None")
    assert outcome.status == 0, outcome.err
    rows = plan(outcome.out)
    assert rows["clients"] == "256, 1 resident at once"
    assert rows["steps"] == "7800 local steps, 156 per epoch"
    assert (rows["rounds"], rows["H per phase"], rows["rate"].split(",")[0]) == ("300", "26, 26, 26", "0.16")


def test_a_recipe_with_flags_trains_from_its_start_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """cifar10-post-local made small: the start point is evaluated first, and epochs count on from 250."""
    data, start = write_npz(tmp_path / "tiny.npz", channels=3), tmp_path / "start.pt"
    torch.save(build("resnet20", in_channels=3, classes=4, image_size=(8, 8)).state_dict(), start)
    small = (
        "--dataset npz --model resnet20 --batch-size 8 --total-batch-size 32 --steps-per-epoch 2 --step1 2 --epochs 2"
    )
    words = [*small.split(), "--data-pth", str(data), "--resume-pth", str(start), "--device", "cpu"]
    outcome = run(capsys, "train", "cifar10-post-local", *words, "--log-pth", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    rows = metrics(tmp_path / "run")
    assert [(row["epoch"], row["comm_round"]) for row in rows] == [(250, 0), (251, 1), (252, 2)]
    assert {row["lr"] for row in rows} == {0.04}


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "recipes")
    assert outcome.status == 0
    assert [line.split()[0] for line in outcome.out.splitlines()] == list(RECIPES)
    assert all(len(line.split()) > 5 for line in outcome.out.splitlines())
