"""The parts of bench.gpu_suite, in order of importance."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from bench.loops import REFERENCE
from fastlocal import kernels


@dataclass(frozen=True)
class Part:
    """A program, run as `python COMMAND`, that writes CSV files to its folder while it runs.

    Files of the same name from several parts become one table.

    Attributes:
        name: Name for --parts.
        command: Words of the command; {out} stands for the part's folder, {seconds} for the time that it should use.
        seconds: Seconds at most, with start and end.
        together: The part runs beside other such parts, before all others, in a time that they share.
        needs: Op whose checks must not have failed.
        flags_if_checked: Flags that are added if the checks of `needs` have passed; without, the part runs them itself.
        deterministic: The program has the flag --deterministic.
        own_cache: The part has a cache of its own for fastlocal's timings, as others run beside it.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    together: bool = False
    needs: str | None = None
    flags_if_checked: tuple[str, ...] = ()
    deterministic: bool = False
    own_cache: bool = False


GATE_SECONDS = 45.0
THROUGHPUT = (("resnet20_gn", 512, 8, 70.0), ("resnet56", 32, 128, 50.0))
"""Model, clients, batch and seconds of the cases whose training throughput is a target, in bf16."""
COHORTS = (("resnet20_gn", "100", 8, 40.0), ("resnet20_gn", "100of1000", 8, 40.0))
"""Throughput of 100 clients on shared samples, and of cohorts of 100 from 1,000 that own theirs."""
REPLICAS = """--dataset synthetic --model resnet20_gn --clients 8 --batch-size 32 --precision bf16 --momentum 0.9
    --step1 8 --rounds 40 --eval-freq1 40 --save-every 0 --bn-batches 1 --device cuda --over client_lr=0.01..0.16/16"""
"""A sweep of runs that fill the device to a fraction each."""
SWEEPS = "--counts 1,4,16 --alone 0 --turns 1 --executor stacked --out {out}"
OUT = ("--out", "{out}", "--seconds", "{seconds}")
DEVICE = ("--device", "cuda")
CIFAR = """--dataset synthetic --model resnet20_gn --clients 32 --batch-size 32 --precision bf16 --client-lr 0.05
    --momentum 0.9 --step1 4 --rounds 12 --eval-freq1 6 --tune-seconds 3"""


def _check(op: str) -> Part:
    command = ("-m", "bench.kernels", "--only", "gate", "--ops", op, *OUT)
    return Part(f"check {op}", command, GATE_SECONDS, together=True)


def _timing(op: str, seconds: float) -> Part:
    command = ("-m", "bench.kernels", "--ops", op, *OUT)
    return Part(f"time {op}", command, seconds, needs=op, flags_if_checked=("--only", "times"), deterministic=True)


def _train(name: str, seconds: float, *words: str, together: bool = False) -> Part:
    """Return a run of the command line, with its run directory in the part's folder."""
    command = ("-m", "fastlocal", "train", *words, *DEVICE, "--log-pth", "{out}/run")
    return Part(name, command, seconds, together=together, own_cache=together)


def _first_run(model: str, clients: int, batch: int) -> Part:
    """Return two rounds of a case that is timed later; they compile its kernels while the checks run."""
    words = f"""--dataset synthetic --model {model} --clients {clients} --batch-size {batch} --executor stacked
        --precision bf16 --replacement 1 --aug 0 --client-lr 0.01 --momentum 0.9 --step1 2 --rounds 2 --eval-freq1 2
        --bn-batches 1 --save-every 0"""
    return _train(f"first run {model}", GATE_SECONDS, *words.split(), together=True)


def _throughput(name: str, model: str, clients: int | str, batch: int, seconds: float) -> Part:
    case = ("--cases", f"{model}:{clients}x{batch}x2", "--precision", "bf16")
    variants = ("--variants", REFERENCE, "fastlocal stacked")
    times = ("--turns", "10", "--case-seconds", "{seconds}", "--out", "{out}")
    return Part(name, ("-m", "bench.throughput", *case, *variants, *times), seconds)


ESSENTIAL = (
    *(_check(op) for op in kernels.TRITON_OPS),
    *(_first_run(*case[:3]) for case in THROUGHPUT),
    *(_throughput(f"training {case[0]}", *case) for case in THROUGHPUT),
    _train("run quickstart", 20, "quickstart"),
    _train("run cifar", 25, *CIFAR.split()),
    Part("verify", ("-m", "fastlocal", "verify", *DEVICE, "--seconds", "40"), 55),  # seconds for a case of an operation
)
"""Parts for which there is time even if each takes all that it may."""

PARTS = (
    *ESSENTIAL,
    _timing("client_sgd", 20),
    _timing("client_adamw", 25),
    _timing("client_mean", 20),
    _timing("conv2d_clients", 40),
    _timing("conv2d_clients_input_grad", 40),
    _timing("conv2d_clients_weight_grad", 40),
    Part("kernel tests", ("-m", "tests.kernels.on_device", *OUT), 60),
    _timing("norm_act", 30),
    _timing("norm_act_backward", 30),
    _timing("client_sgd_mean", 25),
    _timing("gather_augment", 20),
    _timing("label_noise_loss", 20),
    _timing("server_step", 15),
    Part("replicas", ("-m", "bench.sweep", *SWEEPS.split(), "--words", REPLICAS), 90),
    *(_throughput(f"cohort {case[1]}", *case) for case in COHORTS),
    Part(
        "training over clients",
        ("-m", "bench.scaling", "--model", "resnet20_gn", "--precision", "bf16", "--executor", "stacked")
        + ("--clients", "32,128,512", "--steps", "", "--turns", "5", *OUT),
        80,
    ),
    _timing("client_norm", 15),
)


def is_selected(name: str, word: str, names: Collection[str]) -> bool:
    """Return True if `word` selects the part `name`, as its full name or as a prefix."""
    return name == word if word in names else name.startswith(word)


def select_parts(words: Sequence[str] | None, parts: Sequence[Part] = PARTS) -> list[Part]:
    """Return the parts with these names or beginnings of names, and the checks that they need; None selects all.

    Raises:
        ValueError: A word is neither.
    """
    if words is None:
        return list(parts)
    for word in words:
        if not any(part.name.startswith(word) for part in parts):
            raise ValueError(f"unknown part {word!r}; known: {', '.join(part.name for part in parts)}")
    names = {part.name for part in parts}
    selected = [part for part in parts if any(is_selected(part.name, word, names) for word in words)]
    checks = {f"check {part.needs}" for part in selected if part.needs}
    return [part for part in parts if part in selected or part.name in checks]
