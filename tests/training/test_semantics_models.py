"""The named models through the command line, against the same runs in plain torch, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastlocal.cli import main
from fastlocal.config.serialization import read_config
from fastlocal.data import datasets
from fastlocal.models import build
from tests.helpers.plain_program import PlainProgram
from tests.training.test_semantics_runs import assert_same

SAMPLE = Path(__file__).parents[1] / "reference" / "cifar_sample.npz"
COMMON = "--start-lr 0.004 --wd 0.001 --momentum 0.9 --gamma 0.5 --seed 5 --debug 1 --precision fp64"
PHASES = "--epochs 2 --step1 1 --step2 2 --step3 4 --decay1 1 --decay2 1 --save-freq1 2 --save-freq3 1"
SMALL = "--batch-size 6 --total-batch-size 18 --steps-per-epoch 2"

# executor, model, flags
CASES = (
    ("stacked", "resnet20", f"{SMALL} --epochs 2 --step1 2 --bn 1 --bn-batches 2 --aug 1 --eval-on-start 1"),
    ("looped", "resnet20", f"{SMALL} --schedule epochs --epochs 2 --step1 3 --decay1 1 --bn-batches 1"),
    ("stacked", "cnn", f"--batch-size 7 --total-batch-size 28 {PHASES} --group-weight 1 --max-lr 0.05 --warm-up 1"),
    ("looped", "cnn", "--batch-size 5 --clients 3 --epochs 2 --step1 3 --aug 0 --label-noise 1 --noise-p 0.3"),
    (
        *("stacked", "mlp"),
        "--batch-size 3 --clients 9 --steps-per-epoch 3 --epochs 2 --replacement 1 --step1 2 --label-noise 1",
    ),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tenth of the sample images."""
    path = tmp_path_factory.mktemp("images") / "few.npz"
    with np.load(SAMPLE) as sample:
        np.savez(path, **{name: sample[name][: 60 if "train" in name else 16] for name in sample.files})
    return path


@pytest.mark.parametrize(("executor", "name", "flags"), CASES, ids=[" ".join(case[:2]) for case in CASES])
def test_named_model_is_trained_as_in_plain_torch(
    executor: str, name: str, flags: str, images: Path, tmp_path: Path
) -> None:
    start, directory = tmp_path / "start.pt", tmp_path / "run"
    module = build(name, in_channels=3, classes=10, image_size=(32, 32), n_groups=4, seed=1)
    torch.save(module.state_dict(), start)
    words = ["train", "--dataset", "npz", "--data-pth", str(images), "--resume-pth", str(start), "--device", "cpu"]
    words += ["--model", name, "--executor", executor, "--chunk", "2", "--log-pth", str(directory)]
    words += [*COMMON.split(), *flags.split()]
    assert main(words) == 0

    config = read_config(directory / "config.json")
    data = datasets.load("npz", data_pth=str(images), mean=config.data.mean, std=config.data.std)
    assert_same(directory, PlainProgram(config, data, module).train(), None)
