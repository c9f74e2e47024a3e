"""The plan of a run, against counters kept one step at a time."""

from __future__ import annotations

import dataclasses
import json
from math import cos, pi
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlocal.config.schema import RunConfig
from fastlocal.schedule.owned_rounds import make_progress
from fastlocal.schedule.quadratic_rounds import quadratic_steps
from fastlocal.schedule.rounds import Progress, RoundSchedule
from tests.helpers import step_by_step

RATE = 1e-9  # relative: LinearLR multiplies its rates up, step by step


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    """Runs of both schedules; decays may coincide, be 0, come in any order or after the end."""
    by_epochs = draw(st.booleans())
    clients, batch_size = draw(st.integers(1, 40)), draw(st.sampled_from([1, 8, 64]))
    rate = draw(st.sampled_from([0.005, 0.01, 0.3]))
    use_lr = draw(st.booleans()) if by_epochs else False
    max_lr = draw(st.none() | st.sampled_from([0.3, 0.5])) if not use_lr else None
    sync = draw(st.sampled_from(["phases", "constant"] if by_epochs else ["phases", "constant", "qsr"]))
    rounds = draw(st.none() | st.integers(1, 25))
    decaying = st.sampled_from(["constant", "cosine", "linear"])
    small, frequency = st.integers(1, 7), st.integers(1, 4)
    values = {
        "schedule": "epochs" if by_epochs else "rounds",
        "batch_size": batch_size,
        "total_batch_size": clients * batch_size,
        "start_lr": None if use_lr else rate,
        "lr": rate if use_lr else None,
        "warm_up": draw(st.booleans()),
        "warmup_epochs": draw(st.integers(1, 6)),
        "max_lr": max_lr,
        "gamma": draw(st.sampled_from([0.5, 2.0] if sync == "qsr" else [0.1, 0.5, 2.0])),
        "epochs": draw(st.integers(1, 9)),
        "rounds": rounds,
        "steps_per_epoch": draw(small),
        "sync": sync,
        "qsr_alpha": draw(st.sampled_from([0.7, 1.5, 2.5])) * min(rate * clients, max_lr or rate * clients),
        "h_min": draw(st.integers(1, 3)),
        "post_local_from": draw(st.sampled_from([0, 0, 1, 3, 6])),
        "lr_schedule": "constant" if sync == "qsr" and rounds is not None else draw(decaying),
        "resume": draw(st.integers(0, 5)),
        "resume_pth": draw(st.none() | st.just("start.pt")),
        **{f"decay{number}": draw(st.integers(0, 12)) for number in (1, 2, 3)},
        **{f"step{number}": draw(small) for number in (1, 2, 3)},
        **{f"eval_freq{number}": draw(frequency) for number in (1, 2, 3)},
        **{f"save_freq{number}": draw(frequency) for number in (1, 2, 3)},
    }
    return RunConfig().with_values(**values)


def assert_same_round(planned: RoundSchedule, counted: RoundSchedule) -> None:
    if planned.averaged:
        assert planned.learning_rate == pytest.approx(counted.learning_rate, rel=RATE)
        assert planned.iteration == counted.iteration
    # of steps without averaging no line shows these two
    same = {"learning_rate": 0.0, "iteration": 0}
    assert dataclasses.replace(planned, **same) == dataclasses.replace(counted, **same)


@settings(max_examples=200)
@given(config=configs())
def test_the_plan_is_what_counting_steps_gives(config: RunConfig) -> None:
    progress, counted = make_progress(config), step_by_step.count(config)
    planned = list(progress.rounds())
    middle = len(planned) // 2
    assert list(progress.rounds(planned[middle].first_step, middle)) == planned[middle:]
    assert len(planned) == len(counted.rounds) == progress.count()
    for one, other in zip(planned, counted.rounds, strict=True):
        assert_same_round(one, other)
    assert counted.start is not None
    assert_same_round(progress.start(), counted.start)
    assert progress.total_steps == len(counted.rates)
    for step, rate in enumerate(counted.rates):
        assert progress.learning_rate(step) == pytest.approx(rate, rel=RATE)


def three_phases(**values: object) -> RunConfig:
    """The reference's run with every counter in it."""
    given = {
        "batch_size": 8,
        "total_batch_size": 24,
        "start_lr": 0.01,
        "warm_up": True,
        "warmup_epochs": 1,
        "epochs": 3,
        "steps_per_epoch": 6,
        "decay1": 1,
        "decay2": 2,
        "step1": 2,
        "step2": 3,
        "step3": 6,
        "eval_freq1": 2,
        "save_freq1": 3,
        "save_freq2": 2,
        "save_freq3": 1,
        "resume": 5,
    }
    return RunConfig().with_values(**{**given, **values})


def files(config: RunConfig) -> list[str]:
    return [planned.save_as for planned in Progress(config).rounds() if planned.save_as is not None]


def test_names_of_the_reference_run() -> None:
    assert files(three_phases()) == [
        "H=2-3-6_epoch=6_round=3_phase_round=0.pt",
        "H=2-3-6_epoch=7_round=5_phase_round=0.pt",
        "H=2-3-6_epoch=8_round=6_phase_round=1.pt",
    ]
    assert Progress(three_phases()).start().save_as == "H=2-3-6_epoch=5_round=0_phase_round=0.pt"


def test_where_both_decays_coincide_there_is_one_and_phase_3_follows() -> None:
    planned = list(Progress(three_phases(decay2=1, warm_up=False)).rounds())
    assert [one.local_steps for one in planned] == [2, 2, 2, 6, 6]
    assert [one.phase_round for one in planned] == [1, 2, 0, 1, 2]
    assert planned[-1].learning_rate == pytest.approx(0.003)


def test_by_epochs_h_changes_in_the_middle_of_a_round() -> None:
    config = three_phases(schedule="epochs", step1=4, step2=5, decay1=1, decay2=9, decay3=9, warm_up=False, resume=0)
    planned = list(Progress(config).rounds())
    # averaged after every step t with t % H == 0: 4, then from step 6 on 10 and 15
    assert [(one.first_step, one.local_steps, one.averaged) for one in planned] == [
        (0, 4, True),
        (4, 6, True),
        (10, 5, True),
        (15, 3, False),
    ]
    assert [one.phase_files for one in planned] == [((), ()), (("phase_epoch=1.pt",), ()), ((), ()), ((), ())]


def test_warm_up_continues_through_a_decay() -> None:
    progress = Progress(three_phases(warmup_epochs=2))
    assert [progress.learning_rate(step) for step in (0, 5, 6, 11, 12)] == pytest.approx(
        [0.01, 0.01 + 0.02 * 5 / 12, 0.1 * 0.02, 0.1 * (0.01 + 0.02 * 11 / 12), 0.01 * 0.03]
    )


def test_a_total_batch_of_at_most_256_has_no_warm_up_by_epochs() -> None:
    values = {"schedule": "epochs", "start_lr": None, "lr": 0.1, "batch_size": 64, "decay1": 50, "decay2": 50}
    flat = Progress(three_phases(**values, total_batch_size=128))
    assert {flat.learning_rate(step) for step in range(12)} == {0.05}
    rising = Progress(three_phases(**values, total_batch_size=512))
    assert rising.learning_rate(0) == pytest.approx(0.1) and rising.learning_rate(6) == pytest.approx(0.2)


def test_a_file_of_factors(tmp_path: Path) -> None:
    """One per local step after the warm-up, of the peak rate; decays change H alone."""
    (tmp_path / "factors.json").write_text(json.dumps([1 / number for number in range(1, 13)]))
    progress = make_progress(three_phases(lr_schedule=str(tmp_path / "factors.json")))
    rates = [progress.learning_rate(step) for step in range(19)]
    assert rates[6:] == pytest.approx([0.03 / number for number in range(1, 13)] + [0.03 / 12])
    assert rates[3] == pytest.approx(0.02)
    assert [one.local_steps for one in progress.rounds()] == [2, 2, 2, 3, 3, 6]


def test_the_quadratic_rule() -> None:
    """H as published, and over a cosine with warm-up as a loop over steps finds it."""
    assert [quadratic_steps(rate, 0.0175, 4) for rate in (0.008, 0.004, 0.002)] == [4, 19, 76]
    assert quadratic_steps(0.1, 0.3, 1) == 9, "though 0.3 / 0.1 is below 3 in floating point"
    values = {"sync": "qsr", "qsr_alpha": 0.03, "h_min": 2, "lr_schedule": "cosine", "epochs": 40, "warmup_epochs": 2}
    config = three_phases(**values, decay1=10, decay2=20)
    total, warm, lengths, step = 40 * 6, 2 * 6, [], 0
    while step < total:
        decayed = max(step - warm, 0)  # 0 in the warm-up too: its rounds are those of the rate after it
        rate = 0.03 * (1 + cos(pi * decayed / (total - warm))) / 2
        lengths.append(min(max(2, int((0.03 / rate) ** 2 + 1e-6)), total - step))
        step += lengths[-1]
    planned = list(make_progress(config).rounds())
    assert [one.local_steps for one in planned] == lengths and max(lengths) > 20
    assert all(one.averaged and one.iteration == one.first_step + one.local_steps for one in planned)
    assert planned[-1].learning_rate == 0 and make_progress(config).count() == len(lengths)


def test_the_quadratic_rule_by_epochs() -> None:
    """Rates decay within a round, whose H is that of its first step; no counter restarts."""
    values = {"schedule": "epochs", "sync": "qsr", "qsr_alpha": 0.06, "warm_up": False, "resume": 0, "start_lr": 0.01}
    config = three_phases(**values, gamma=0.5, decay1=2, decay2=3, decay3=3, epochs=7, post_local_from=1, save_freq1=1)
    planned = list(make_progress(config).rounds())
    # the rate is 0.03 until step 12, then 0.015 until step 18, then 0.0075: H is 4, 16, 64
    assert [one.local_steps for one in planned] == [1] * 6 + [4, 4, 16, 12]
    assert [one.phase_round for one in planned] == [*range(1, 11)]
    assert planned[7].phase_files == (("phase_epoch=2.pt",), ()) and planned[8].phase_files[0] == ("phase_epoch=3.pt",)
    assert planned[5].save_as == "H=qsr_epoch=1.pt"
