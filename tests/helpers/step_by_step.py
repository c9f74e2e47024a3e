"""The counters of a run kept one local step at a time, as DESIGN describes them: the oracle for `Progress`."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass, field

import torch
from torch.optim.lr_scheduler import LinearLR

from fastlocal.config.schema import RunConfig
from fastlocal.schedule.rounds import RoundSchedule


@dataclass
class Counted:
    """rates: of every local step        rounds: as Progress.rounds() plans them        start: as Progress.start()"""

    rates: list[float] = field(default_factory=list)
    rounds: list[RoundSchedule] = field(default_factory=list)
    start: RoundSchedule | None = None


class Rate:
    """A dummy optimizer whose rate a LinearLR and the decays change, or another --lr-schedule over `total` steps."""

    def __init__(self, config: RunConfig, steps_per_epoch: int, total: int = 0) -> None:
        sgd, clients = config.sgd, config.clients
        if sgd.lr is not None:
            start, peak = sgd.lr, sgd.lr * config.client.total_batch_size / 256
            warm_up = sgd.warm_up and peak > start
        else:
            assert sgd.start_lr is not None
            start, peak = sgd.start_lr, sgd.start_lr * clients
            warm_up = sgd.warm_up
        if warm_up and sgd.max_lr is not None:
            peak = sgd.max_lr
        self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
        self.scheduler = None
        self.peak, self.steps, self.warm_steps, self.total = peak, 0, 0, total
        self.schedule = config.schedule.lr_schedule
        if warm_up:
            steps = sgd.warmup_epochs * steps_per_epoch
            self.warm_steps = steps if peak > start else 0
            self.scheduler = LinearLR(self.optimizer, start_factor=start / peak, total_iters=steps)

    @property
    def value(self) -> float:
        if self.schedule == "constant" or self.steps < self.warm_steps:
            return float(self.optimizer.param_groups[0]["lr"])
        done = (self.steps - self.warm_steps) / max(1, self.total - self.warm_steps)
        return self.peak * (1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)

    def step(self) -> None:
        self.steps += 1
        self.optimizer.step()
        if self.scheduler is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a deprecated argument inside torch
                self.scheduler.step()

    def decay(self, gamma: float) -> None:
        if self.schedule == "constant":
            self.optimizer.param_groups[0]["lr"] *= gamma


class CifarProgram:
    """--schedule rounds: decays at the ends of rounds restart the phase's counters."""

    def __init__(self, config: RunConfig, total: int) -> None:
        self.config, self.schedule = config, config.schedule
        assert config.schedule.steps_per_epoch is not None
        self.steps_per_epoch = config.schedule.steps_per_epoch
        self.rate = Rate(config, self.steps_per_epoch, total)
        schedule = self.schedule
        self.decay1_round = self.rounds(0, schedule.decay1, schedule.step1)
        self.decay2_round = self.rounds(schedule.decay1, schedule.decay2, schedule.step2) + self.decay1_round
        self.step = self.phase_step = self.comm_round = self.phase_round = 0
        self.epoch = config.model.resume
        self.eval_freq, self.save_freq = schedule.eval_freq1, schedule.save_freq1
        self.usual_steps = schedule.step1
        self.label = "qsr" if schedule.sync == "qsr" else f"{schedule.step1}-{schedule.step2}-{schedule.step3}"
        self.counted = Counted()

    def rounds(self, begin: int, end: int, local_steps: int) -> int:
        """The rounds from one epoch to another; local steps that do not fill the last one are not counted."""
        early = sum(epoch < self.schedule.post_local_from for epoch in range(begin, end))
        return early * self.steps_per_epoch + (end - begin - early) * self.steps_per_epoch // local_steps

    @property
    def local_steps(self) -> int:
        return 1 if self.step < self.schedule.post_local_from * self.steps_per_epoch else self.usual_steps

    def run(self) -> Counted:
        self.counted.start = self.describe(0, 0, averaged=True, trained=False)
        begin = 0
        while not self.finished():
            self.counted.rates.append(self.rate.value)
            self.rate.step()
            self.step += 1
            self.phase_step += 1
            synchronous = self.step <= self.schedule.post_local_from * self.steps_per_epoch
            if synchronous or self.phase_step % self.local_steps == 0:
                self.end_of_round(begin)
                begin = self.step
        if begin < self.step:
            self.epoch = self.config.model.resume + self.step // self.steps_per_epoch
            self.counted.rounds.append(self.describe(begin, self.step - begin, averaged=False))
        return self.counted

    def finished(self) -> bool:
        if self.schedule.rounds is not None:
            return self.comm_round == self.schedule.rounds
        return self.step == self.schedule.epochs * self.steps_per_epoch

    def end_of_round(self, begin: int) -> None:
        self.comm_round += 1
        self.phase_round += 1
        self.epoch = self.config.model.resume + self.step // self.steps_per_epoch
        if self.comm_round in (self.decay1_round, self.decay2_round):
            self.rate.decay(self.config.sgd.gamma)
            self.phase_step = self.phase_round = 0
        schedule = self.schedule
        if self.step == schedule.post_local_from * self.steps_per_epoch:
            self.phase_step = self.phase_round = 0
        if self.comm_round == self.decay1_round:
            self.usual_steps, self.eval_freq, self.save_freq = schedule.step2, schedule.eval_freq2, schedule.save_freq2
        if self.comm_round == self.decay2_round:
            self.usual_steps, self.eval_freq, self.save_freq = schedule.step3, schedule.eval_freq3, schedule.save_freq3
        self.counted.rounds.append(self.describe(begin, self.step - begin, averaged=True))

    def describe(self, begin: int, local_steps: int, *, averaged: bool, trained: bool = True) -> RoundSchedule:
        evaluate = averaged and (not trained or self.phase_round % self.eval_freq == 0)
        save = evaluate and self.phase_round % self.save_freq == 0
        varying = self.schedule.post_local_from > 0 or self.schedule.sync == "qsr"
        where = f"epoch={self.epoch}_round={self.comm_round}_phase_round={self.phase_round}"
        return RoundSchedule(
            first_step=begin,
            local_steps=local_steps,
            averaged=averaged,
            comm_round=self.comm_round,
            phase_round=self.phase_round,
            epoch=self.epoch,
            iteration=self.step if varying else self.comm_round * self.local_steps,
            learning_rate=self.rate.value,
            evaluate=evaluate,
            save_as=f"H={self.label}_{where}.pt" if save else None,
        )


class ImageNetProgram:
    """--schedule epochs: decays at the ends of epochs, in the middle of a round if need be; no counter restarts."""

    def __init__(self, config: RunConfig, total: int) -> None:
        self.config, self.schedule = config, config.schedule
        assert config.schedule.steps_per_epoch is not None
        self.steps_per_epoch = config.schedule.steps_per_epoch
        self.rate = Rate(config, self.steps_per_epoch, total)
        schedule = self.schedule
        self.step = self.comm_round = self.begin = 0
        self.epoch = config.model.resume if config.model.resume_pth is not None else 0
        self.switch = max(0, schedule.post_local_from - self.epoch) * self.steps_per_epoch
        self.usual_steps, self.eval_freq, self.save_freq = schedule.step1, schedule.eval_freq1, schedule.save_freq1
        self.before: tuple[str, ...] = ()
        self.counted = Counted()

    def run(self) -> Counted:
        self.counted.start = self.describe(averaged=True, trained=False)
        while not self.finished():
            self.epoch += 1
            for _ in range(self.steps_per_epoch):
                if not self.finished():
                    self.local_step()
            if self.step % self.steps_per_epoch == 0:
                self.end_of_epoch()
        if self.begin < self.step:
            inside = self.before
            at_end = tuple(name for name in inside if self.step == self.end_of(name))
            self.before = tuple(name for name in inside if name not in at_end)
            self.counted.rounds.append(self.describe(averaged=False, after=at_end))
        return self.counted

    def finished(self) -> bool:
        if self.schedule.rounds is not None:
            return self.comm_round == self.schedule.rounds
        return self.step == self.schedule.epochs * self.steps_per_epoch

    def end_of(self, name: str) -> int:
        first = self.config.model.resume if self.config.model.resume_pth is not None else 0
        return (int(name.removeprefix("phase_epoch=").removesuffix(".pt")) - first) * self.steps_per_epoch

    def local_step(self) -> None:
        self.counted.rates.append(self.rate.value)
        self.rate.step()
        self.step += 1
        if self.step <= self.switch or (self.step - self.switch) % self.usual_steps == 0:
            self.comm_round += 1
            self.counted.rounds.append(self.describe(averaged=True))
            self.begin, self.before = self.step, ()

    def end_of_epoch(self) -> None:
        schedule = self.schedule
        if self.epoch not in (schedule.decay1, schedule.decay2, schedule.decay3):
            return
        self.rate.decay(self.config.sgd.gamma)
        name = f"phase_epoch={self.epoch}.pt"
        if self.begin == self.step:
            last = self.counted.rounds[-1]
            self.counted.rounds[-1] = RoundSchedule(**{**vars(last), "phase_files": (last.phase_files[0], (name,))})
        else:
            self.before += (name,)
        if self.epoch == schedule.decay1:
            self.usual_steps, self.eval_freq, self.save_freq = schedule.step2, schedule.eval_freq2, schedule.save_freq2
        if self.epoch == schedule.decay2:
            self.usual_steps, self.eval_freq, self.save_freq = schedule.step3, schedule.eval_freq3, schedule.save_freq3

    def describe(self, *, averaged: bool, trained: bool = True, after: tuple[str, ...] = ()) -> RoundSchedule:
        evaluate = averaged and (not trained or self.comm_round % self.eval_freq == 0)
        save = evaluate and self.epoch % self.save_freq == 0
        schedule = self.schedule
        return RoundSchedule(
            first_step=self.begin,
            local_steps=self.step - self.begin,
            averaged=averaged,
            comm_round=self.comm_round,
            phase_round=self.comm_round,
            epoch=self.epoch,
            iteration=self.step if self.switch else self.comm_round * self.usual_steps,
            learning_rate=self.rate.value,
            evaluate=evaluate,
            save_as=f"H={schedule.step1}-{schedule.step2}-{schedule.step3}_epoch={self.epoch}.pt" if save else None,
            phase_files=(self.before, after),
        )


class QuadraticProgram(CifarProgram):
    """--schedule rounds --sync qsr: right after averaging, H follows from the rate of the next step."""

    def run(self) -> Counted:
        self.counted.start = self.describe(0, 0, averaged=True, trained=False)
        schedule, begin, end = self.schedule, 0, self.next_average()
        total = schedule.epochs * self.steps_per_epoch
        while not self.finished():
            self.counted.rates.append(self.rate.value)
            self.rate.step()
            self.step += 1
            for number, decay in ((2, schedule.decay1), (3, schedule.decay2)):
                if self.step == decay * self.steps_per_epoch:
                    self.eval_freq = getattr(schedule, f"eval_freq{number}")
                    self.save_freq = getattr(schedule, f"save_freq{number}")
            if self.step in {decay * self.steps_per_epoch for decay in (schedule.decay1, schedule.decay2)}:
                self.rate.decay(self.config.sgd.gamma)
            if self.step == end or (schedule.rounds is None and self.step == total):
                self.comm_round += 1
                self.phase_round += 1
                self.epoch = self.config.model.resume + self.step // self.steps_per_epoch
                self.counted.rounds.append(self.describe(begin, self.step - begin, averaged=True))
                begin, end = self.step, self.next_average()
        return self.counted

    def next_average(self) -> int:
        schedule = self.schedule
        assert schedule.qsr_alpha is not None
        if self.step < schedule.post_local_from * self.steps_per_epoch:
            return self.step + 1
        rate = copy.deepcopy(self.rate)
        ahead = self.step
        while rate.steps < rate.warm_steps:  # the rate right after the warm-up
            rate.step()
            ahead += 1
            if ahead in {decay * self.steps_per_epoch for decay in (schedule.decay1, schedule.decay2)}:
                rate.decay(self.config.sgd.gamma)
        return self.step + max(schedule.h_min, int((schedule.qsr_alpha / max(rate.value, 1e-9)) ** 2 + 1e-9))


def count(config: RunConfig) -> Counted:
    """Every step, round, evaluation and file of a run whose steps_per_epoch is resolved."""
    if config.schedule.sync == "constant":
        config = config.with_values(step2=config.schedule.step1, step3=config.schedule.step1)
    kind = ImageNetProgram if config.schedule.schedule == "epochs" else CifarProgram
    if config.schedule.sync == "qsr":
        kind = QuadraticProgram
    assert config.schedule.steps_per_epoch is not None
    total = config.schedule.epochs * config.schedule.steps_per_epoch
    if config.schedule.lr_schedule != "constant" and config.schedule.rounds is not None:
        total = len(kind(config, 1).run().rates)
    return kind(config, total).run()
