"""The parts of bench.gpu_suite, in order of importance. Add a bench by adding an entry."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from bench.loops import REFERENCE
from fastlocal import kernels


@dataclass(frozen=True)
class Part:
    """A program, run as `python COMMAND`, that leaves CSV files in its folder, whatever becomes of it.

    Files of one name from several parts become one table.

    name: by which it is asked for
    command: in which {out} stands for the part's folder and {seconds} for the time that it is told to use
    seconds: that it may take at most, with its start and its end
    together: runs beside other such parts, before all others, in a time that they share
    needs: an op whose checks have to pass before it
    checked: words that are added where these checks have passed; a part that has none is not run until they have, and
        one that has some runs them itself
    deterministic: knows the flag --deterministic
    own_choices: keeps apart what fastlocal finds out about the speed of this machine, as others run beside it
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    together: bool = False
    needs: str | None = None
    checked: tuple[str, ...] = ()
    deterministic: bool = False
    own_choices: bool = False


GATE_SECONDS = 45.0
TARGETS = (("resnet20_gn", 512, 8, 70.0), ("resnet56", 32, 128, 50.0))
"""Models, clients and batches of the training throughput that is aimed at, in bf16, with the seconds for each."""
OUT = ("--out", "{out}", "--seconds", "{seconds}")
DEVICE = ("--device", "cuda")
CIFAR = """--dataset synthetic --model resnet20_gn --clients 32 --batch-size 32 --precision bf16 --client-lr 0.05
    --momentum 0.9 --step1 4 --rounds 12 --eval-freq1 6 --tune-seconds 3"""


def _check(op: str) -> Part:
    command = ("-m", "bench.kernels", "--only", "gate", "--ops", op, *OUT)
    return Part(f"check {op}", command, GATE_SECONDS, together=True)


def _timing(op: str, seconds: float) -> Part:
    command = ("-m", "bench.kernels", "--ops", op, *OUT)
    return Part(f"time {op}", command, seconds, needs=op, checked=("--only", "times"), deterministic=True)


def _train(name: str, seconds: float, *words: str, together: bool = False) -> Part:
    """A run of the command line, whose run directory goes with the part's folder."""
    command = ("-m", "fastlocal", "train", *words, *DEVICE, "--log-pth", "{out}/run")
    return Part(name, command, seconds, together=together, own_choices=together)


def _first_run(model: str, clients: int, batch: int) -> Part:
    """A round of what is timed afterwards: whether it trains at all, and its kernels are compiled beside the checks."""
    words = f"""--dataset synthetic --model {model} --clients {clients} --batch-size {batch} --executor stacked
        --precision bf16 --replacement 1 --aug 0 --client-lr 0.01 --momentum 0.9 --step1 2 --rounds 2 --eval-freq1 2
        --bn-batches 1 --save-every 0"""
    return _train(f"first run {model}", GATE_SECONDS, *words.split(), together=True)


def _throughput(model: str, clients: int, batch: int, seconds: float) -> Part:
    case = ("--cases", f"{model}:{clients}x{batch}x2", "--precision", "bf16")
    variants = ("--variants", REFERENCE, "fastlocal stacked")
    times = ("--turns", "10", "--case-seconds", "{seconds}", "--out", "{out}")
    return Part(f"training {model}", ("-m", "bench.throughput", *case, *variants, *times), seconds)


PRECIOUS = (
    *(_check(op) for op in kernels.TRITON_OPS),
    *(_first_run(*target[:3]) for target in TARGETS),
    *(_throughput(*target) for target in TARGETS),
    _train("run quickstart", 20, "quickstart"),
    _train("run cifar", 25, *CIFAR.split()),
    Part("verify", ("-m", "fastlocal", "verify", *DEVICE, "--seconds", "40"), 55),  # seconds for a case of an operation
)
"""For which time is left even where each takes all that it may."""

PARTS = (
    *PRECIOUS,
    _timing("client_sgd", 20),
    _timing("client_mean", 20),
    _timing("conv2d_clients", 40),
    _timing("conv2d_clients_input_grad", 40),
    _timing("conv2d_clients_weight_grad", 40),
    Part("kernel tests", ("-m", "bench.device_tests", *OUT), 60),
    _timing("norm_act", 30),
    _timing("norm_act_backward", 30),
    _timing("client_sgd_mean", 25),
    _timing("gather_augment", 20),
    Part("time linear", ("-m", "bench.linear", *OUT), 25, needs="conv2d_clients"),
    _timing("label_noise_loss", 20),
    Part(
        "training over clients",
        ("-m", "bench.scaling", "--model", "resnet20_gn", "--precision", "bf16", "--executor", "stacked")
        + ("--clients", "32,128,512", "--steps", "", "--turns", "5", *OUT),
        80,
    ),
    Part("count bytes", ("-m", "bench.dram", *OUT), 60),
    _timing("client_norm", 15),
)


def is_asked(name: str, word: str, names: Collection[str]) -> bool:
    """Return True if `word` selects the part `name`, as its full name or as a prefix."""
    return name == word if word in names else name.startswith(word)


def chosen(words: Sequence[str] | None, parts: Sequence[Part] = PARTS) -> list[Part]:
    """The parts with these names or beginnings of names, and the checks that they need; all of them for None.

    Raises ValueError for a word that is neither.
    """
    if words is None:
        return list(parts)
    for word in words:
        if not any(part.name.startswith(word) for part in parts):
            raise ValueError(f"unknown part {word!r}; known: {', '.join(part.name for part in parts)}")
    names = {part.name for part in parts}
    wanted = [part for part in parts if any(is_asked(part.name, word, names) for word in words)]
    needed = {f"check {part.needs}" for part in wanted if part.needs}
    return [part for part in parts if part in wanted or part.name in needed]
