"""Mistakes about populations, cohorts, weights and servers: status 2, one line, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.command_line import run, tree
from tests.helpers.refusals import assert_refused

GOOD = "--partition iid --population 8 --clients 4 --batch-size 4 --rounds 2 --client-lr 0.1"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--clients 9", ("--clients 9", "--population 8")),
        ("--population 0", ("--population 0",)),
        ("--decay1 3", ("--decay1", "--partition iid", "--rounds")),
        ("--epochs 3", ("--epochs", "--rounds")),
        ("--warm-up 1", ("--warm-up", "--lr-schedule")),
        ("--replacement 1", ("--replacement",)),
        ("--start-lr 0.1", ("--start-lr", "--client-lr")),
        ("--alpha 0.3", ("--alpha 0.3", "--partition iid")),
        ("--clients-drop 1.5", ("--clients-drop 1.5", "[0, 1]")),
        ("--clients-drop 1", ("--clients-drop 1", "less than 1")),
        ("--clients-drop nan", ("--clients-drop nan",)),
        ("--local-epochs 0", ("--local-epochs 0", "above 0")),
        ("--local-epochs inf", ("--local-epochs inf", "finite")),
        ("--local-epochs 2 --step1 3", ("--step1 3", "--local-epochs 2", "one of them")),
        ("--local-epochs 1 --partition shared", ("--local-epochs", "--partition shared")),
        ("--local-epochs 2e9", ("--local-epochs 2e+09", "steps in a round", "at most")),
        ("--local-epochs 0.01 --last-batch drop", ("--local-epochs 0.01", "--last-batch drop", "--batch-size 4")),
        ("--last-batch fil --local-epochs 1", ("--last-batch", "fil", "partial")),
        ("--last-batch partial", ("--last-batch partial", "--local-epochs")),
        ("--stragglers 2", ("--stragglers 2", "[0, 1]")),
        ("--stragglers nan", ("--stragglers nan",)),
        ("--stragglers 0.1 --partition shared", ("--stragglers 0.1", "--partition shared")),
        ("--cohort-sampling unifrom", ("--cohort-sampling unifrom", "'uniform'")),
        ("--cohort-sampling replacement --client-state keep", ("--client-state keep", "replacement")),
        ("--cohort-sampling weighted --client-weights examples", ("--client-weights examples", "weighted")),
        ("--client-weights example", ("--client-weights example", "'examples'")),
        ("--client-state kept", ("--client-state", "kept")),
        ("--lr-schedule cosin", ("--lr-schedule cosin", "'cosine'")),
        ("--server-optimizer adma", ("--server-optimizer adma", "'adam'")),
        ("--server-optimizer sgd --server-beta2 0.9", ("--server-beta2 0.9", "sgd", "--server-lr")),
        ("--server-optimizer yogi --server-tau 0", ("--server-tau 0", "--server-accumulator")),
        ("--server-lr 0.5", ("--server-lr 0.5", "none")),
        ("--server-optimizer adam --server-lr nan", ("--server-lr nan", "finite")),
        ("--server-optimizer momentum --server-momentum 1", ("--server-momentum 1", "[0, 1)")),
        ("--lr-schedule few.txt", ("--lr-schedule few.txt", "1 factors", "--rounds 2")),
        ("--lr-schedule torn.json", ("--lr-schedule torn.json", "cannot be read")),
        ("--lr-schedule negative.txt", ("--lr-schedule negative.txt", "factor 2")),
        ("--cohort-sampling torn.json", ("--cohort-sampling torn.json", "JSON")),
        ("--cohort-sampling numbers.json", ("--cohort-sampling numbers.json", "list of lists")),
        ("--cohort-sampling stranger.json", ("--cohort-sampling stranger.json", "round 2", "8")),
        ("--cohort-sampling twice.json", ("--cohort-sampling twice.json", "round 1", "twice")),
        ("--client-weights numbers.json", ("--client-weights numbers.json", "8 clients")),
        ("--client-weights zero.npy", ("--client-weights zero.npy", "client 3", "above 0")),
        ("--client-weights words.json", ("--client-weights words.json", "list of numbers")),
        ("--client-weights complex.npy", ("--client-weights complex.npy", "complex128")),
        ("--client-weights great.json", ("--client-weights great.json", "does not hold numbers")),
        ("--lr-schedule words.json", ("--lr-schedule words.json", "list of numbers")),
        ("--client-weights torn.npy", ("--client-weights torn.npy", "cannot be read")),
        ("--client-test 1 --eval-clients 1", ("--client-test 1", "below 1")),
        ("--client-test nan", ("--client-test nan",)),
        ("--client-test 0.001", ("--client-test 0.001", "no client")),
        ("--client-test 0 --eval-clients 1", ("--client-test 0", "--eval-clients")),
        ("--eval-clients 0", ("--eval-clients 0",)),
        ("--eval-clients 3 --eval-freq1 2", ("--eval-clients 3", "--eval-freq1 2")),
        ("--eval-clients-of all", ("--eval-clients-of all", "--eval-clients")),
        ("--eval-clients 1 --eval-clients-of everybody", ("--eval-clients-of", "everybody")),
        ("--stop-at 0.9", ("--stop-at 0.9", "val_acc1=0.97")),
        ("--stop-at val_acc1=nan", ("--stop-at val_acc1=nan",)),
        ("--stop-at val_ac1=0.9", ("--stop-at val_ac1=0.9", "'val_acc1'")),
        ("--stop-at val_acc5=0.9", ("--stop-at val_acc5=0.9", "val_acc1")),
        ("--stop-at own_acc1=0.9", ("--stop-at own_acc1=0.9", "--eval-clients")),
    ],
)
def test_one_line(
    words: str,
    says: tuple[str, ...],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("few.txt").write_text("1.0\n")
    Path("negative.txt").write_text("1 -0.5")
    Path("torn.json").write_text("[[0, 1], [2, ")
    Path("words.json").write_text('["1", true, 1, 1, 1, 1, 1, 1]')
    Path("numbers.json").write_text("[1, 2, 3]")
    Path("stranger.json").write_text(json.dumps([[0, 1], [2, 8]]))
    Path("twice.json").write_text(json.dumps([[0, 0], [2]]))
    np.save("zero.npy", np.array([1, 1, 1, 0, 1, 1, 1, 1]))
    np.save("complex.npy", np.ones(8, dtype=complex))
    Path("great.json").write_text(f"[{'9' * 400}, 1, 1, 1, 1, 1, 1, 1]")
    Path("torn.npy").write_bytes(b"\x93NUMPY\x01\x00v")
    before = tree(tmp_path)
    good = ["train", "--dataset", "npz", "--data-pth", data, "--log-pth", "run", "--device", "cpu", *GOOD.split()]
    given = words.split()
    for flag in given[::2]:
        if flag in good:
            at = good.index(flag)
            del good[at : at + 2]
    assert_refused(run(capsys, *good, *given), says)
    assert tree(tmp_path) == before
