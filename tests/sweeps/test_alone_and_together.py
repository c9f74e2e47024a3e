"""A run of a sweep is the run alone, though it trains beside others as rows of one stack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastlocal.cli import main
from fastlocal.reports.sweep_records import read_sweep
from tests.helpers.command_line import metrics, train_words, write_npz
from tests.helpers.run_files import difference, run_files

LABELS = "--label-noise --clip-norm 0.5 --nesterov --momentum 0.5"
OWNED = "--population 7 --clients 3 --batch-size 4 --rounds 5 --step1 2 --eval-freq1 2 --client-lr 0.1 --momentum 0.9"
CASES = {
    "every hyperparameter": (
        f"--model mlp --epochs 3 --step1 2 {LABELS}",
        [
            *(
                "seed=3,noise_p=0.4,momentum=0.9,wd=0.1,client_lr=0.3",
                "seed=0,noise_p=0,momentum=0.5,wd=0,client_lr=0.1",
            ),
            "seed=3,noise_p=0,momentum=0.9,wd=0,client_lr=0.1",
        ],
    ),
    "adamw": (
        f"--model mlp --epochs 2 --client-optimizer adamw --client-state average --clip-norm 0.5 {LABELS.split()[0]}",
        [
            *("seed=3,wd=0.1,client_lr=0.1,beta1=0.8", "seed=0,wd=0,client_lr=0.01,beta1=0.9"),
            "seed=0,wd=0.1,client_lr=0.01,beta1=0.8",
        ],
    ),
    "group norm": (
        "--model resnet20_gn --epochs 1 --batch-size 4 --total-batch-size 8 --steps-per-epoch 2 --aug 1",
        ["seed=2,wd=0.1", "seed=1,wd=0"],
    ),
    "batch norm": (
        "--model resnet20 --epochs 1 --batch-size 4 --total-batch-size 8 --steps-per-epoch 2 --aug 1",
        ["seed=2,bn_batches=3", "seed=1,bn_batches=1"],
    ),
    "cohorts": (
        f"--partition dirichlet --server-optimizer adam --eval-clients 2 {OWNED}",
        [
            "seed=1,alpha=0.3,server_lr=0.3,clients_drop=0.3",
            *("seed=0,alpha=2,server_lr=0.1,clients_drop=0", "seed=0,alpha=0.3,server_lr=0.1,clients_drop=0.3"),
        ],
    ),
    "terms of algorithms": (
        f"--partition dirichlet --algorithm feddyn {OWNED}",
        ["seed=1,feddyn_alpha=0.3", "seed=0,feddyn_alpha=0.1"],
    ),
    "H by rule": (
        "--model mlp --epochs 4 --qsr-alpha 0.03",
        [
            "sync=qsr,lr_schedule=cosine,h_min=3,post_local_from=1",
            *(
                "sync=phases,lr_schedule=constant,h_min=3,post_local_from=1",
                "sync=qsr,lr_schedule=constant,h_min=3,post_local_from=1",
            ),
        ],
    ),
    "unequal clients": (
        f"--partition quantity --last-batch partial {OWNED.replace('--step1 2', '--client-state keep')}",
        ["seed=1,local_epochs=2,stragglers=0.4", "seed=0,local_epochs=0.6,stragglers=0.4"],
    ),
    "H, clients, epochs": (
        "--epochs 4 --decay1 2 --step2 3",
        [
            "step1=2,clients=4,epochs=3,gamma=0.1,lr=0.1",
            *("step1=1,clients=2,epochs=2,gamma=1,lr=0.1", "step1=2,clients=4,epochs=2,gamma=1,lr=0.1"),
        ],
    ),
}


def sweep_words(data: Path, directory: Path, *words: str) -> list[str]:
    words_of_run = train_words(data, directory)[1:]
    return ["sweep", *words_of_run[: words_of_run.index("--batch-size")], *words]


def flags_of(name: str) -> list[str]:
    pairs = (part.split("=") for part in name.split(","))
    return [word for field, value in pairs for word in ("--" + field.replace("_", "-"), value)]


EXECUTORS = {
    "adamw": ("looped", "stacked"),  # the steps of threaded are those of plain SGD
    "terms of algorithms": ("looped", "stacked"),
    "cohorts": ("looped", "stacked"),
    "group norm": ("stacked",),
    "batch norm": ("threaded", "stacked"),
    "H by rule": ("looped",),
    "H, clients, epochs": ("threaded", "stacked"),
}
"""The executors that judge the cases which are not judged by all executors."""


@pytest.mark.parametrize(
    ("case", "executor"),
    [(case, one) for case in CASES for one in EXECUTORS.get(case, ("looped", "threaded", "stacked"))],
)
def test_every_swept_field(case: str, executor: str, data: Path, tmp_path: Path) -> None:
    """The first run, or two, to the bit with looped and threaded, to rounding with stacked."""
    flags, names = CASES[case]
    if case.endswith("norm"):
        data = write_npz(tmp_path / "colours.npz", train=24, side=8, channels=3)
    words = [*flags.split(), "--executor", executor, "--precision", "fp64"]
    if case in ("every hyperparameter", "adamw") or case.startswith("H"):
        words += ["--batch-size", "8"] + ([] if "clients=" in names[0] else ["--clients", "2"])
    runs = [dict(part.split("=") for part in name.split(",")) for name in names]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    assert main(sweep_words(data, tmp_path / "sweep", *words, "--runs", str(tmp_path / "runs.json"))) == 0
    states = read_sweep(tmp_path / "sweep").runs
    assert {run.status for run in states} == {"done"}
    for place, name in enumerate(names[: 2 if case in ("every hyperparameter", "adamw") else 1]):
        alone = tmp_path / f"alone{place}"
        assert main(["train", *sweep_words(data, alone, *words)[1:], *flags_of(name)]) == 0
        together = tmp_path / "sweep" / name
        if executor != "stacked":
            assert difference(run_files(together), run_files(alone)) == ""
            continue
        weights = [torch.load(folder / "latest.pt", weights_only=True) for folder in (together, alone)]
        for key, value in weights[1].items():
            torch.testing.assert_close(weights[0][key], value, rtol=1e-12, atol=1e-12)
        for row, expected in zip(metrics(together), metrics(alone), strict=True):
            assert row == pytest.approx(expected, rel=1e-12)
