"""Messages of the Python API: what the command line calls a flag is an argument there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import nn

import fastlocal
from fastlocal.config.python_names import ARGUMENTS, UNSUPPORTED, to_python_names
from fastlocal.config.schema import AREA_OF
from tests.helpers.table_fit import fit, perceptron, table


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("--bn 0: a has BatchNorm; use --bn 1", "bn=False: a has BatchNorm; use bn=True"),
        ("--executor stacked: no; --executor looped trains it", 'executor="stacked": no; executor="looped" trains it'),
        ("masks depend on --chunk and --executor", "masks depend on chunk and executor"),
        ("(4 clients x --batch-size 16) or use --replacement 1", "(4 clients x batch_size=16) or use replacement=True"),
        ("--step1 0: must", "local_steps=0: must"),
        ("--max-lr 0.05: is below --client-lr 1e-05; x", "max_lr=0.05: is below lr=1e-05; x"),
        ("--wd -1.0: must", "weight_decay=-1.0: must"),
        ("--device cpu:1: no; use cpu, or --device cuda:0", 'device="cpu:1": no; use cpu, or device="cuda:0"'),
        ("use --source resident or torch", 'use source="resident" or "torch"'),
        ("give --source torch --on-bad-sample skip)", 'give source="torch", on_bad_sample="skip")'),
        ("--log-pth /a b/c: a run; --overwrite 1", 'directory="/a b/c": a run; overwrite=True'),
        ("--continue: gone; --overwrite replaces it", "resume=True: gone; overwrite=True replaces it"),
        ("--mean (0.5, 0.5): trained with None", "mean=(0.5, 0.5): trained with None"),
        ("--mean 0.5 0.25: no", "mean=(0.5, 0.25): no"),
        ("--memory-limit None: the run", "memory_limit=None: the run"),
        ("--model Linear: needs 3 GiB; a smaller --model", "model Linear: needs 3 GiB; a smaller model"),
        ("--conv-strategy a,b=c: what", 'conv_strategy="a,b=c": what'),
        ("--wandb online: (`w --login` or --wandb offline)", 'wandb="online": (`w --login` or wandb="offline")'),
        ("--nproc-per-node 4: more than GPUs", "--nproc-per-node 4: more than GPUs"),
        ("--executor threaded --channels-last 1      3 ms", 'executor="threaded", channels_last=True    3 ms'),
        ("over--lr 3 and --no-such-flag 3", "over--lr 3 and --no-such-flag 3"),
    ],
)
def test_flags_become_arguments(said: str, wanted: str) -> None:
    assert to_python_names(said) == wanted


def test_every_field_has_the_name_that_train_takes() -> None:
    for name in AREA_OF:
        flag = "--" + name.replace("_", "-")
        translated = to_python_names(f"lower {flag}")
        assert "--" not in translated
        if name not in UNSUPPORTED and name not in ("dataset", "model"):
            assert translated == f"lower {ARGUMENTS.get(name, name)}"


def test_what_a_run_says_names_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dropout = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1), nn.Linear(16, 2))
    fit(tmp_path, dropout, progress=True, rounds=1)
    fit(tmp_path, dropout, progress=True, rounds=1, resume=True)
    said = capsys.readouterr().err
    assert "rounds extend it" in said and not re.search(r"--[a-z]", said)
    with pytest.raises(fastlocal.UsageError) as refused:
        fit(tmp_path, dropout, rounds=1)
    assert 'directory="' in str(refused.value) and "overwrite=True" in str(refused.value)
    with pytest.raises(fastlocal.UsageError, match='ops="sum": is no op of this device'):
        fastlocal.verify(perceptron(), table()[0], ops="sum", progress=False)
