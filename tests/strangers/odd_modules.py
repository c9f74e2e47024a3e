"""Modules put together from odd habits, each of which trains as the plain loop trains it, or is refused.

    python -m tests.strangers.odd_modules [--count 1000] [--first 0]
        [--executors auto looped stacked threaded | --in-turn] [--page FILE]

prints how many trained, by which executor, how many were refused and why, and the seeds of those that are wrong.
--in-turn: by `auto` and by one of the others, another one for each next seed        --page FILE: the same as a page
"""

from __future__ import annotations

import argparse
import collections
import copy
import random
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tests.strangers.gradient_odd_blocks
import tests.strangers.late_odd_blocks
import tests.strangers.more_odd_blocks  # noqa: F401  (their kinds are found among Block's)
from tests.helpers.plain_loop import Data, Loss, LossOf, Recipe, plain_train
from tests.strangers.judge import EXECUTORS, MakeModel, failure, judge
from tests.strangers.odd_blocks import WIDTH, Block

CLASSES, WORDS, SAMPLES = 3, 5, 29
ARRANGEMENTS = ("one after the other", "residual", "called twice", "side by side")


def blocks() -> dict[str, Callable[[], nn.Module]]:
    """Every kind of block by its name."""
    found: dict[str, Callable[[], nn.Module]] = {"Block": Block}
    waiting = [Block]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            found[kind.__name__] = kind
            waiting.append(kind)
    return dict(sorted(found.items()))


BLOCKS = blocks()


class Odd(nn.Module):
    """A stem for rows or words, blocks in some arrangement, and a head."""

    def __init__(self, names: Sequence[str], arrangement: str, words: bool) -> None:
        super().__init__()
        self.stem = nn.Embedding(WORDS, WIDTH) if words else nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList([BLOCKS[name]() for name in names])
        self.head = nn.Linear(WIDTH, CLASSES)
        self.arrangement = arrangement

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        hidden = hidden.mean(dim=1) if hidden.dim() == 3 else hidden
        if self.arrangement == "side by side":
            return self.head(torch.stack([block(hidden) for block in self.blocks]).sum(dim=0))
        for block in self.blocks:
            if self.arrangement == "residual":
                hidden = hidden + block(hidden)
            else:
                hidden = block(block(hidden)) if self.arrangement == "called twice" else block(hidden)
        return self.head(hidden)


def penalty(model: nn.Module) -> Loss:
    """Smooth, as a bias before a norm stays at the sign of a rounding error."""
    return lambda out, y: F.cross_entropy(out, y) + 0.02 * sum(value.square().sum() for value in model.parameters())


def penalty_of_captured(model: nn.Module) -> Loss:
    weight = model.head.weight
    return lambda out, y: F.cross_entropy(out, y) + 0.1 * weight.square().sum()


class Switches:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return F.cross_entropy(out, y) * (1.0 if self.calls < 4 else 0.1)


class LearnedScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out * self.scale, y)


def a_layer(model: nn.Module) -> Loss:
    return lambda out, y: F.cross_entropy(out, y) + 0.1 * model.head(torch.tanh(model.head.weight[:2])).square().mean()


def of_what_blocks_keep(model: nn.Module) -> Loss:
    """What KeepsActivation and MakesAnew leave in their modules."""
    return lambda out, y: F.cross_entropy(out, y) + 0.1 * sum(map(kept_by, model.blocks))


def kept_by(block: nn.Module) -> Tensor | float:
    kept = getattr(block, "seen", getattr(block, "outs", [None])[0])
    return 0.0 if kept is None else kept.square().mean()


def of_detached(model: nn.Module) -> Loss:
    weight = model.head.weight.detach()
    return lambda out, y: F.cross_entropy(out, y) * (1 + 0.1 * weight.abs().sum())


def counting_on_the_model(model: nn.Module) -> Loss:
    model.calls = 0

    def loss(out: Tensor, y: Tensor) -> Tensor:
        model.calls += 1
        return F.cross_entropy(out, y) / model.calls

    return loss


LOSSES: dict[str, Callable[[], Loss | LossOf]] = {
    "cross-entropy": lambda: F.cross_entropy,
    "smoothed": lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
    "weights": lambda: nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, CLASSES, dtype=torch.float64)),
    "margins": nn.MultiMarginLoss,
    "squares": lambda: lambda out, y: F.mse_loss(out, F.one_hot(y, CLASSES).to(out.dtype)),
    "a penalty": lambda: LossOf(penalty),
    "a penalty of a captured weight": lambda: LossOf(penalty_of_captured),
    "a layer that the loss calls": lambda: LossOf(a_layer),
    "what blocks keep": lambda: LossOf(of_what_blocks_keep),
    "a detached weight": lambda: LossOf(of_detached),
    "a count on the model": lambda: LossOf(counting_on_the_model),
    "a switch": Switches,
    "a learned scale": LearnedScale,
}
INPUTS = ("rows", "rows", "words", "words of 32 bits", "a word that is not there")


def odd_module(seed: int) -> tuple[MakeModel, Data, Loss | LossOf, str]:
    """What seed `seed` puts together: the module, its data and loss, and words that say what it is."""
    draw = random.Random(seed)
    names = draw.choices(list(BLOCKS), k=draw.choice([1, 1, 2, 3]))
    arrangement = draw.choice(ARRANGEMENTS)
    loss_name = draw.choice(list(LOSSES)) if draw.random() < 0.5 else "cross-entropy"
    inputs_name = draw.choice(INPUTS[:-1]) if draw.random() < 0.95 else INPUTS[-1]

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Odd(names, arrangement, words="word" in inputs_name).double()

    said = f"{'+'.join(names)} {arrangement}, loss: {loss_name}, inputs: {inputs_name}"
    return make, _data(inputs_name, seed), LOSSES[loss_name](), said


def _data(name: str, seed: int) -> Data:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    if name == "rows":
        return torch.randn(SAMPLES, 4, generator=generator, dtype=torch.float64), labels
    words = torch.randint(0, WORDS, (SAMPLES, 3), generator=generator)
    if name == "a word that is not there":
        words[-1, 1] = random.Random(seed).choice([-1, WORDS])
    return words.int() if name == "words of 32 bits" else words, labels


def odd_recipe(seed: int) -> Recipe:
    """A few steps of two or three clients."""
    draw = random.Random(seed + 1_000_000)
    momentum = draw.choice([0.0, 0.9])
    return Recipe(
        clients=draw.choice([2, 3]),
        rounds=2,
        local_steps=draw.choice([2, 3]),
        batch_size=draw.choice([3, 4]),
        lr=0.05,
        momentum=momentum,
        nesterov=bool(momentum) and draw.random() < 0.5,
        weight_decay=draw.choice([0.0, 0.01]),
        seed=seed,
    )


@dataclass(frozen=True)
class Outcome:
    """kind: trained, refused, fails too (as the plain loop does), or wrong        by: an executor        said: why"""

    seed: int
    kind: str
    by: str
    said: str = ""


def outcomes(seed: int, executors: Sequence[str]) -> Iterator[Outcome]:
    """What becomes of a seed's module by each executor."""
    make, data, loss, _ = odd_module(seed)
    recipe = odd_recipe(seed)
    try:
        wanted = plain_train(make(), data, copy.deepcopy(loss), recipe)
    except (RuntimeError, IndexError):
        wanted = None
    for executor in executors:
        try:
            if wanted is None:
                yield Outcome(seed, "fails too", executor, failure(make, data, loss, executor, recipe))
                continue
            verdict = judge(make, data, loss, wanted, executor, recipe)
        except Exception as error:  # an assertion of the judge, or a traceback that a user would see
            yield Outcome(seed, "wrong", executor, f"{type(error).__name__}: {_line(error)}")
        else:
            if verdict.took is None:
                yield Outcome(seed, "refused", executor, verdict.refused or "")
            else:
                yield Outcome(seed, "trained", verdict.took)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def reason(said: str) -> str:
    """A refusal without the names and numbers of the module at hand."""
    said = re.sub(r"(?<!\w)'[^']*'|\b[\w.]*\d[\w.]*\b|\bblocks\.\S+|(?<=attribute )\S+", "_", said)
    return textwrap.shorten(said, 150, placeholder=" ...")


def in_turn(seed: int) -> tuple[str, str]:
    """`auto`, and one of the other executors."""
    return "auto", ("looped", "stacked", "threaded")[seed % 3]


PAGE = """# Odd modules

{count} modules were put together by chance from {kinds} blocks with odd habits (state in buffers, hooks, parameters
reached past their names, parts in evaluation mode and others), {losses} losses and {inputs} kinds of inputs. Each was
trained in float64 by {executors} for two rounds, and compared with the plain loop of
`tests/helpers/plain_loop.py` to 1e-9. A module that the loop itself cannot train must fail with an error of one line
too.
`{command}` makes this page.

| outcome | executor, or why | runs |
| --- | --- | --: |
"""


def page(count: int, command: str, executors: str, counts: dict[str, collections.Counter[str]]) -> str:
    """The counts in Markdown."""
    head = {"kinds": len(BLOCKS), "losses": len(LOSSES), "inputs": len(set(INPUTS))}
    lines = [PAGE.format(count=f"{count:,}", command=command, executors=executors, **head)]
    for kind, found in counts.items():
        rows = [(name.replace("|", "/").replace("__", r"\_\_"), number) for name, number in found.most_common()]
        lines += [f"| {kind} | {name} | {number} |\n" for name, number in rows or [("none", 0)]]
    return "".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--executors", nargs="+", default=list(EXECUTORS), choices=EXECUTORS)
    parser.add_argument("--in-turn", action="store_true")
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    counts = {kind: collections.Counter[str]() for kind in ("trained", "refused", "fails too", "wrong")}
    wrong, begun = [], time.monotonic()
    for seed in range(given.first, given.first + given.count):
        for outcome in outcomes(seed, in_turn(seed) if given.in_turn else given.executors):
            counts[outcome.kind][reason(outcome.said) if outcome.kind == "refused" else outcome.by] += 1
            if outcome.kind == "wrong":
                wrong.append(outcome)
                print(f"wrong: {seed} ({odd_module(seed)[3]}) by {outcome.by}: {outcome.said}", flush=True)
        if seed % 100 == 99:
            print(f"up to {seed}: {time.monotonic() - begun:.0f} s", flush=True)
    executors = "auto and one other executor" if given.in_turn else ", ".join(given.executors)
    print(f"{given.count} modules by {executors} in {time.monotonic() - begun:.0f} s")
    command = " ".join(["python -m tests.strangers.odd_modules", *sys.argv[1:]])
    if given.page is not None:
        given.page.write_text(page(given.count, command, executors, counts), encoding="utf-8")
    for kind, found in counts.items():
        print(f"{kind}: {sum(found.values())}")
        print("".join(f"  {count:>5}  {name}\n" for name, count in found.most_common()), end="")
    print(f"wrong seeds: {sorted({outcome.seed for outcome in wrong})}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
