"""A user's mistake on the command line: status 2, one line that names the flag, no traceback, no run directory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.command_line import Outcome, run, tree
from tests.helpers.refusals import assert_refused


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--total-batch-size 20", ("--total-batch-size 20", "--batch-size 8", "16 or 24")),
        ("--total-batch-size 4", ("--total-batch-size 4", "--batch-size 8")),
        ("--total-batch-size 72", ("--total-batch-size 72", "64 training samples", "--replacement 1")),
        ("--steps-per-epoch 5", ("--steps-per-epoch 5", "64", "at most 4")),
        ("--steps-per-epoch 0", ("--steps-per-epoch 0", "at least 1")),
        ("--steps-per-epoch -2", ("--steps-per-epoch -2", "at least 1")),
        ("--model resnet57", ("--model", "resnet57", "did you mean 'resnet56'?")),
        ("--model resnet50", ("--model", "resnet50", "did you mean 'torchvision.resnet50'?")),
        ("--model torchvision.resnet5", ("--model", "torchvision.resnet5", "'torchvision.resnet50'")),
        ("--dataset digts", ("--dataset", "digts", "did you mean 'digits'?")),
        ("--batchsize 4", ("--batchsize", "did you mean '--batch-size'?")),
        ("-lr 4", ("-lr", "did you mean '--lr'?")),
        ("--no-nesterov", ("--no-nesterov", "did you mean '--nesterov'?")),
        ("--batch-size 0", ("--batch-size 0", "at least 1")),
        ("--batch-size -8", ("--batch-size -8", "at least 1")),
        ("--total-batch-size 0", ("--total-batch-size 0", "at least 1")),
        ("--epochs 0", ("--epochs 0", "at least 1")),
        ("--epochs -1", ("--epochs -1", "at least 1")),
        ("--epochs 99999999999999999999", ("--epochs 99999999999999999999", "at most")),
        ("--step1 0", ("--step1 0", "at least 1")),
        ("--step2 -1", ("--step2 -1", "at least 1")),
        ("--step3 0", ("--step3 0", "at least 1")),
        ("--eval-freq1 0", ("--eval-freq1 0", "at least 1")),
        ("--save-freq3 -5", ("--save-freq3 -5", "at least 1")),
        ("--start-lr -0.1", ("--start-lr -0.1", "0 or more")),
        ("--start-lr -1e-3", ("--start-lr -0.001", "0 or more")),
        ("--start-lr nan", ("--start-lr nan", "finite")),
        ("--start-lr inf", ("--start-lr inf", "finite")),
        ("--start-lr -inf", ("--start-lr -inf", "finite")),
        ("--lr nan", ("--lr nan", "finite")),
        ("--lr -1", ("--lr -1", "0 or more")),
        ("--client-lr -1", ("--client-lr -1", "0 or more")),
        ("--max-lr nan", ("--max-lr nan", "finite")),
        ("--gamma -0.1", ("--gamma -0.1", "0 or more")),
        ("--wd nan", ("--wd nan", "finite")),
        ("--momentum 1", ("--momentum 1", "[0, 1)")),
        ("--momentum -0.1", ("--momentum -0.1", "[0, 1)")),
        ("--momentum nan", ("--momentum nan", "[0, 1)")),
        ("--nesterov 1", ("--nesterov 1", "momentum")),
        ("--nesterov", ("--nesterov 1", "momentum")),
        ("--client-optimizer adam", ("--client-optimizer", "adam", "adamw")),
        ("--client-optimizer adamw --momentum 0.9", ("--momentum 0.9", "--client-optimizer sgd", "--beta1")),
        ("--client-optimizer adamw --nesterov 1", ("--nesterov 1", "--client-optimizer sgd")),
        ("--client-optimizer adamw --beta1 1", ("--beta1 1", "[0, 1)")),
        ("--client-optimizer adamw --beta2 nan", ("--beta2 nan", "[0, 1)")),
        ("--client-optimizer adamw --adam-eps 0", ("--adam-eps 0", "above 0")),
        ("--client-optimizer adamw --executor threaded", ("--executor threaded", "looped")),
        ("--beta1 0.8", ("--beta1", "--client-optimizer adamw")),
        ("--client-optimizer sgd --beta2 0.99", ("--beta2", "--client-optimizer adamw")),
        ("--adam-eps 1e-6", ("--adam-eps", "--client-optimizer adamw")),
        ("--label-noise 1 --noise-p 1.5", ("--noise-p 1.5", "[0, 1]")),
        ("--label-noise 1 --noise-p -0.1", ("--noise-p -0.1", "[0, 1]")),
        ("--noise-p nan", ("--noise-p nan", "[0, 1]")),
        ("--model resnet20_gn --n-groups 3", ("--n-groups 3", "1, 2, 4, 8 or 16")),
        ("--n-groups 0", ("--n-groups 0", "at least 1")),
        ("--max-lr 0.005", ("--max-lr 0.005", "--start-lr 0.01")),
        ("--warm-up 1 --max-lr 0.005 --start-lr 0.1", ("--max-lr 0.005", "--start-lr 0.1")),
        ("--warm-up 1 --warmup-epochs 0", ("--warmup-epochs 0", "at least 1")),
        ("--device tpu", ("--device tpu", "cpu, cuda")),
        ("--device meta", ("--device meta", "cpu, cuda")),
        ("--device cpu:1", ("--device cpu:1", "use cpu")),
        ("--lr 0.1 --start-lr 0.1", ("--start-lr and --lr", "one of them")),
        ("--epochs 1 --rounds 1", ("--epochs and --rounds", "one of them")),
        ("--clients 2 --total-batch-size 16", ("--clients and --total-batch-size", "one of them")),
        ("--bn 1", ("--bn 1", "mlp", "--bn 0")),
        ("--model resnet20 --bn 0", ("--bn 0", "resnet20", "--bn 1")),
        ("--model resnet20 --bn-batches 0", ("--bn-batches 0", "at least 1")),
        ("--chunk 0", ("--chunk 0", "at least 1")),
        ("--chunk -1", ("--chunk -1", "at least 1")),
        ("--nw -1", ("--nw -1", "0 or more")),
        ("--bucket-mb 0", ("--bucket-mb 0", "above 0")),
        ("--bucket-mb nan", ("--bucket-mb nan", "above 0")),
        ("--reduce-order fixed --wire-format bf16", ("--wire-format bf16", "--reduce-order fixed", "full")),
        ("--reduce-order fixed --batch-size 1 --total-batch-size 1048577", ("--reduce-order fixed", "1048577")),
        ("--seed -1", ("--seed -1", "0 or more")),
        ("--seed 9223372036854775808", ("--seed 9223372036854775808", "below 2^63")),
        ("--resume -1", ("--resume -1", "0 or more")),
        ("--mean 0.5 0.5", ("--mean", "1 value", "0.5 0.5")),
        ("--mean=0.5,0.5,0.5 --std=0.2,0.2,0.2", ("--mean", "1 value")),
        ("--mean nan", ("--mean", "finite", "nan")),
        ("--std 0", ("--std", "above 0")),
        ("--std -1", ("--std", "above 0", "-1")),
        ("--precision tf32", ("--precision tf32", "fp32")),
        ("--config missing.json", ("--config", "missing.json")),
        ("--resume-pth missing.pt", ("--resume-pth missing.pt", "no such file")),
        ("--resume-pth .", ("--resume-pth .", "is a folder")),
        ("--data-pth missing.npz", ("--data-pth", "missing.npz", "does not exist")),
        ("--data-pth .", ("--data-pth", "folder", "npz")),
        ("--data-pth ~nobody_there/x.npz", ("--data-pth ~nobody_there/x.npz",)),
    ],
)
def test_refused_flags(words: str, says: tuple[str, ...], refused: Callable[..., Outcome]) -> None:
    refused(*words.split(), says=says)


def test_clients(refused: Callable[..., Outcome], data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--dataset", "npz", "--data-pth", data, "--device", "cpu", "--batch-size", "8"]
    for clients, says in ((0, "--clients 0"), (-3, "--clients -3"), (100, "100 clients")):
        assert_refused(run(capsys, *words, "--clients", clients), (says,))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_without_a_gpu(device: str, refused: Callable[..., Outcome]) -> None:
    refused("--device", device, says=(f"--device {device}", "--device cpu"))


@pytest.mark.parametrize("length", [300, 5000])
@pytest.mark.parametrize("flag", ["--log-pth", "--resume-pth", "--data-pth", "--config"])
def test_names_that_no_file_can_have(flag: str, length: int, refused: Callable[..., Outcome]) -> None:
    refused(flag, "x" * length, says=(flag,), longest=400 + 2 * length)


def test_empty_paths(refused: Callable[..., Outcome]) -> None:
    for flag in ("--log-pth", "--resume-pth", "--data-pth", "--train-pth", "--val-pth"):
        refused(flag, "", says=(f"{flag} ''",))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--clients many", ("--clients many: must be a whole number", "fastlocal train --help")),
        ("--batch-size 3.5", ("--batch-size 3.5: must be a whole number",)),
        ("--steps-per-epoch x", ("--steps-per-epoch x: must be a whole number",)),
        ("--start-lr fast", ("--start-lr fast: must be a number",)),
        ("--mean dark blue", ("--mean dark blue: must be numbers",)),
        ("--nesterov 2", ("--nesterov 2: must be 0, 1, true or false",)),
        ("--nesterov 1 0", ("--nesterov 1 0: must be 0, 1, true or false",)),
        ("--precision fp16", ("--precision", "fp16", "bf16")),
        ("--executor fast", ("--executor fast: must be one of auto, stacked, looped, threaded",)),
        ("--wandb yes", ("--wandb yes: must be one of online, offline, disabled",)),
        ("--batch-size", ("--batch-size: needs a value",)),
        ("--config", ("--config: needs a value",)),
        ("--model --epochs 3", ("--model: needs a value",)),
        ("--epochs 3 stray", ("stray",)),
    ],
)
def test_what_the_parser_refuses(words: str, says: tuple[str, ...], refused: Callable[..., Outcome]) -> None:
    refused(*words.split(), says=says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("trian", ("unknown command 'trian'", "did you mean 'train'?")),
        ("train quikstart", ("unknown recipe 'quikstart'", "did you mean 'quickstart'?")),
        ("train quickstart cifar10-post-local", ("cifar10-post-local", "one recipe")),
        ("train --warm-up quickstart", ("'quickstart'", "comes first")),
        ("train quickstart --config c.json", ("--config c.json", "quickstart", "one of them")),
        ("train imagenet-post-local", ("--train-pth is needed with --dataset beton", "fastlocal prepare")),
        ("train quickstart --precision fp16", ("--precision fp16", "loss scale", "bf16")),
        ("evaluate x.pt --precision fp16", ("--precision fp16", "loss scale", "bf16")),
        ("recipes quickstart", ("recipes", "'quickstart'")),
        ("evaluate x.pt --epochs 3", ("unknown flag --epochs", "fastlocal evaluate --help")),
    ],
)
def test_commands_and_recipes(
    words: str,
    says: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run(capsys, *words.split()), says)
    assert tree(tmp_path) == set()


def test_nothing_given(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys)
    assert outcome.status == 2 and "usage: fastlocal" in outcome.out
    outcome = run(capsys, "evaluate")
    assert outcome.status == 2 and "state_dict to evaluate" in outcome.err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "Expecting value"),
        ('{"name": "train", "data": {', "Expecting"),
        ("[1, 2]", "not a JSON object"),
        ("{}", "no field data"),
        ('{"name": "resnet", "layers": 3}', "no field data"),
        ("[" * 100_000, "recursion"),
        (b"\xff\xfe\x00", "decode"),
    ],
    ids=["empty", "torn", "list", "no fields", "foreign", "deep", "binary"],
)
def test_foreign_config(content: str | bytes, says: str, tmp_path: Path, refused: Callable[..., Outcome]) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused("--config", path, says=(f"--config {path}", says))


@pytest.mark.parametrize("below", ["file", "file/deeper", "/proc/run", "/proc/self/run/deeper"])
def test_log_directory_that_cannot_be(below: str, tmp_path: Path, refused: Callable[..., Outcome]) -> None:
    (tmp_path / "file").write_text("a file")
    refused("--log-pth", tmp_path / below, says=("--log-pth", str(tmp_path / below)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_log_directory_without_permission(tmp_path: Path, refused: Callable[..., Outcome]) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    refused("--log-pth", tmp_path / "closed" / "run", says=("--log-pth", "cannot be written"))


@pytest.mark.parametrize(("flags", "package"), [(("--wandb", "offline"), "wandb"), (("--tensorboard",), "tensorboard")])
def test_missing_extra(
    flags: tuple[str, ...], package: str, refused: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (package, f"torch.utils.{package}"):
        monkeypatch.setitem(sys.modules, name, None)
    refused(*flags, says=(flags[0], f"fastlocal[{package}]"))


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--dataset", "digits", "--batchsize", "8"),
        ("train", "--dataset", "digits", "--epochs", "0"),
        ("train", "--dataset", "digits", "--total-batch-size", "1536"),
        ("train", "--dataset", "digits", "--batch-size", "3.5"),
    ],
)
def test_in_a_process_of_its_own(words: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastlocal", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert_refused(outcome, (words[-2],), one_line="3.5" not in words)
    assert tree(tmp_path) == set()
