"""The flags of `fastlocal train`: names, defaults, spellings, help."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastlocal.commands.flags import parse
from fastlocal.config.schema import AREA_OF, AREAS
from tests.helpers.command_line import metrics, run, tree, write_npz

CIFAR_PROGRAM: dict[str, Any] = {
    "nw": 2,
    "bn": None,
    "group_weight": False,
    "batch_size": 128,
    "start_lr": 0.01,
    "lr": None,
    "max_lr": None,
    "wd": 5e-4,
    "momentum": 0.0,
    "nesterov": False,
    "epochs": 300,
    "warm_up": False,
    "warmup_epochs": 5,
    "bn_batches": 100,
    "wandb": "disabled",
    "wandb_save": False,
    "total_batch_size": 128,
    "steps_per_epoch": None,
    "decay1": 250,
    "decay2": 500,
    "gamma": 0.1,
    **{f"{name}{phase}": 1 for name in ("step", "eval_freq") for phase in (1, 2, 3)},
    **{f"save_freq{phase}": 100 for phase in (1, 2, 3)},
    "debug": False,
    "log_pth": None,
    "resume": 0,
    "resume_pth": None,
    "eval_on_start": False,
    "replacement": False,
    "aug": None,
    "label_noise": False,
    "noise_p": 0.1,
    "n_groups": 8,
    "dist_url": "env://",
    "dataset": "digits",
    "model": "mlp",
    "seed": 0,
    "executor": "auto",
}
IMAGENET_PROGRAM = CIFAR_PROGRAM | {
    "nw": 12,
    "model": "torchvision.resnet50",
    "start_lr": None,
    "lr": 0.01,
    "epochs": 1,
    "total_batch_size": 16384,
    "decay1": 150,
    "decay2": 225,
    "decay3": 225,
    **{f"save_freq{phase}": 50 for phase in (1, 2, 3)},
    "group_weight": True,
}
REFERENCE_FLAGS = """
    --data-pth --log-pth --model --resume --resume-pth --batch-size --total-batch-size --steps-per-epoch --debug
    --warm-up --warmup-epochs --start-lr --max-lr --lr --wd --momentum --nesterov --bn --bn-batches --group-weight
    --n-groups --epochs --decay1 --decay2 --decay3 --gamma --step1 --step2 --step3 --eval-freq1 --eval-freq2
    --eval-freq3 --save-freq1 --save-freq2 --save-freq3 --eval-on-start --replacement --aug --label-noise --noise-p
    --wandb --wandb-save --seed --nw --device --dist-url --train-pth --val-pth
""".split()
NEW_FLAGS = "--clients --dataset --mean --std --schedule --precision --executor --chunk --config --overwrite --dry-run"


def settings(*words: str) -> dict[str, Any]:
    """Every field of what the words make, by name."""
    config = parse(words).run
    return {name: getattr(getattr(config, area), name) for name, area in AREA_OF.items()}


@pytest.mark.parametrize(
    ("words", "expected"), [((), CIFAR_PROGRAM), (("--schedule", "epochs"), IMAGENET_PROGRAM)], ids=["rounds", "epochs"]
)
def test_defaults_are_the_references(words: tuple[str, ...], expected: dict[str, Any]) -> None:
    found = settings(*words)
    assert {name: found[name] for name in expected} == expected


def test_help_shows_what_most_runs_need(capsys: pytest.CaptureFixture[str]) -> None:
    """In less than 60 lines, with the values that the recipe gives."""
    outcome = run(capsys, "train", "quickstart", "--help")
    assert outcome.status == 0 and outcome.err == "" and len(outcome.out.splitlines()) < 60
    for part in ("--clients", "--client-lr", "rate that each client applies, unscaled [0.2]", "--help-all"):
        assert part in outcome.out


def test_help_lists_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "train", "--help-all")
    assert outcome.status == 0 and outcome.err == ""
    text = " ".join(outcome.out.replace("│", " ").split())
    for flag in (*REFERENCE_FLAGS, *NEW_FLAGS.split()):
        assert f" {flag} " in text, flag
    assert text.count("(default: ") >= len(AREA_OF)
    for group in ("data options", "model options", "client options", "sgd options", "schedule options"):
        assert group in text


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("cifar10-post-local",), ("(default: resnet56)", "(default: 4096)", "(default: 600)", "(default: 12)")),
        (("imagenet-post-local",), ("(default: torchvision.resnet50)", "(default: 8192)", "(default: 0.005)")),
        (("--schedule", "epochs"), ("(default: 16384)", "(default: epochs)")),
    ],
)
def test_help_shows_what_is_changed(
    words: tuple[str, ...], shown: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(run(capsys, "train", *words, "--help-all").out.replace("│", " ").split())
    for part in shown:
        assert part in text


def test_the_other_helps(capsys: pytest.CaptureFixture[str]) -> None:
    for words, part in (("--help", "evaluate"), ("evaluate -h", "--n-groups"), ("recipes --help", "usage")):
        outcome = run(capsys, *words.split())
        assert outcome.status == 0 and part in outcome.out
    assert run(capsys, "--version").out.startswith("fastlocal ")


BOOLEANS = [spec.name for kind in AREAS.values() for spec in dataclasses.fields(kind) if "bool" in str(spec.type)]


@pytest.mark.parametrize("name", BOOLEANS)
def test_booleans(name: str) -> None:
    flag = "--" + name.replace("_", "-")
    bare = settings(flag, "--epochs", "3")
    assert (bare[name], bare["epochs"]) == (True, 3)
    assert settings(flag, "0")[name] is False


@pytest.mark.parametrize("flag", ["--warm-up", "--aug", "--bn"])
def test_spellings_of_booleans(flag: str) -> None:
    name = flag[2:].replace("-", "_")
    for words in ((flag, "1"), (flag, "true"), (flag, "True"), (f"{flag}=1",), (flag, "0", flag), (flag, "1.0")):
        assert settings(*words)[name] is True, words
    for words in ((flag, "false"), (flag, "False"), (f"{flag}=0",), (flag, "1", flag, "0"), (flag, "0.0")):
        assert settings(*words)[name] is False, words


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("--resume-pth None", "resume_pth", None),
        ("--log-pth None", "log_pth", None),
        ("--data-pth None", "data_pth", None),
        ("--train-pth None", "train_pth", None),
        ("--val-pth None", "val_pth", None),
        ("--device None", "device", None),
        ("--wandb None", "wandb", "online"),
        ("--wandb=None", "wandb", "online"),
        ("--wandb offline", "wandb", "offline"),
        ("--wandb disabled", "wandb", "disabled"),
        ("--max-lr -1", "max_lr", None),
        ("--max-lr=-1", "max_lr", None),
        ("--max-lr -1.0", "max_lr", None),
        ("--max-lr None", "max_lr", None),
        ("--max-lr 0.5", "max_lr", 0.5),
        ("--steps-per-epoch -1", "steps_per_epoch", None),
        ("--steps-per-epoch None", "steps_per_epoch", None),
        ("--n-groups -1", "n_groups", 8),
        ("--mean None", "mean", None),
        ("--mean 0.1 0.2 0.3", "mean", (0.1, 0.2, 0.3)),
        ("--mean=0.1,0.2,0.3", "mean", (0.1, 0.2, 0.3)),
        ("--mean -0.5 --std 1", "mean", (-0.5,)),
        ("--wd=1e-4", "wd", 1e-4),
        ("--batch_size 4", "batch_size", 4),
        ("--batch_size=4", "batch_size", 4),
        ("--epochs 3 --epochs 7", "epochs", 7),
        ("--resume-pth=a/H=1-1-1_init.pt", "resume_pth", "a/H=1-1-1_init.pt"),
        ("--nesterov 0.0", "nesterov", False),
        ("--data-pth a,b", "data_pth", "a,b"),
        ("--lr 0.1", "start_lr", None),
        ("--client-lr 0.1", "start_lr", None),
        ("--schedule epochs --start-lr 0.1", "lr", None),
        ("--config None", "epochs", 300),
        ("--clients 4", "total_batch_size", 512),
        ("--clients 4 --batch-size 8", "total_batch_size", 32),
    ],
)
def test_spellings(word: str, name: str, value: Any) -> None:
    assert settings(*word.split())[name] == value


def test_a_command_line_of_the_reference_trains(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every flag of its CIFAR program, as its scripts write them, with `None` and -1 for what is not set."""
    words = f"""
        --data-pth {data} --log-pth {tmp_path}/run --model resnet20_gn --resume 500 --resume-pth None --seed 7
        --batch-size 8 --total-batch-size 16 --steps-per-epoch 2 --debug 1 --wandb disabled --wandb-save 0 --epochs 2
        --start-lr 0.01 --max-lr -1 --wd 0.0005 --momentum 0.9 --nesterov 1 --warm-up 1 --warmup-epochs 1 --bn 0
        --bn-batches 0 --group-weight 1 --n-groups 8 --decay1 5000000 --decay2 5000000 --gamma 0.1 --step1 2 --step2 2
        --step3 2 --eval-freq1 1 --eval-freq2 1 --eval-freq3 1 --save-freq1 1 --save-freq2 1 --save-freq3 1
        --eval-on-start 1 --replacement 1 --aug 0 --label-noise 1 --noise-p 0.1 --nw 2 --device cpu --dist-url env://
    """
    outcome = run(capsys, "train", "--dataset", "npz", *words.split())
    assert outcome.status == 0, outcome.err
    rows = metrics(tmp_path / "run")
    assert [(row["epoch"], row["comm_round"]) for row in rows] == [(500, 0), (501, 1), (502, 2)]
    assert [row["lr"] for row in rows] == pytest.approx([0.01, 0.02, 0.02])
    assert tree(tmp_path / "run") == {
        "config.json",
        "metrics.jsonl",
        "steps.jsonl",
        "latest.pt",
        "resume.pt",
        "resume.1.pt",
        "H=2-2-2_init.pt",
        "H=2-2-2_epoch=500_round=0_phase_round=0.pt",
        "H=2-2-2_epoch=501_round=1_phase_round=1.pt",
        "H=2-2-2_epoch=502_round=2_phase_round=2.pt",
    }
    for path in (tmp_path / "run").glob("*"):
        assert str(path) in outcome.out


def test_the_imagenet_program_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colour = write_npz(tmp_path / "colour.npz", channels=3, classes=8)
    words = f"""
        --data-pth {colour} --train-pth None --val-pth None --nw 2 --seed 3 --dist-url env:// --batch-size 8 --lr 0.32
        --device cpu --epochs 2 --steps-per-epoch -1 --total-batch-size 32 --warm-up 0 --gamma 0.1 --model cnn
        --momentum 0 --nesterov 0 --wd 0.0005 --decay1 1 --decay2 225 --decay3 225 --resume 0 --resume-pth None
        --log-pth {tmp_path}/run --wandb disabled --step1 1 --step2 2 --step3 2 --eval-freq1 1 --eval-freq2 1
        --eval-freq3 1 --save-freq1 1 --save-freq2 1 --save-freq3 1 --group-weight 1 --warmup-epochs 5 --bn-batches 100
    """
    outcome = run(capsys, "train", "--schedule", "epochs", "--dataset", "npz", *words.split())
    assert outcome.status == 0, outcome.err
    rows = metrics(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [1, 1, 2]
    assert [row["lr"] for row in rows] == pytest.approx([0.04, 0.04, 0.004])
    assert {"train_acc5", "val_acc5"} <= set(rows[0])
    assert {path.name for path in (tmp_path / "run").glob("*.pt")} == {
        "latest.pt",
        "resume.pt",
        "resume.1.pt",
        "H=1-2-2_init.pt",
        "phase_epoch=1.pt",
        "H=1-2-2_epoch=1.pt",
        "H=1-2-2_epoch=2.pt",
    }


def test_output_into_a_pipe_that_closes() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "fastlocal", "train", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_what_was_chosen_stays_when_a_run_is_repeated_with_other_flags(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what followed from another setting follows again."""
    words = f"--data-pth {data} --log-pth {tmp_path}/run --device cpu --partition dirichlet --alpha 3 --population 8"
    words += " --batch-size 4 --clients 4 --rounds 1 --client-lr 0.1 --client-state average"
    assert run(capsys, "train", "--dataset", "npz", *words.split()).status == 0
    for flags, changed in {
        "--clients-drop 0.2": {"clients_drop": 0.2},
        "--partition iid": {"partition": "iid", "alpha": None, "client_weights": None, "client_epochs": None},
        "--partition dirichlet --alpha 2": {"alpha": 2.0},
        "--partition parts.npz": {"partition": "parts.npz", "alpha": None, "population": None},
        "--clients 8": {"total_batch_size": 32},
    }.items():
        config = parse(["--config", f"{tmp_path}/run/config.json", *flags.split()]).run
        wanted = {"population": 8, "alpha": 3.0, "client_state": "average", **changed}
        assert {name: config.value(name) for name in wanted} == wanted, flags
