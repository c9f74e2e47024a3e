"""Popular modules beside a plain loop: which executor takes each, how far it is from the loop, what is refused and why.

    pip install timm transformers
    python -m bench.popular_modules [--only NAME ...] [--seconds 600] [--executors auto ...] [--go-on]

trains two clients for two rounds of two steps in float64, once in a plain loop and once by each executor, every module
in a process of its own, and adds to bench/results/cpu/popular_modules.csv and docs/modules.md. Weights are drawn, never
loaded. Dropout and stochastic depth are set to 0, as a plain loop has other masks. With --go-on, modules of which the
table has rows of these sources are left out. `--smallest-of-timm` prints what timm's smallest models are.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from bench import processes
from bench.case import RESULTS, machine
from bench.popular_zoo import MODULES, Popular, make, smallest_of_timm
from bench.tables import Row, merge, read

TABLE = RESULTS / "cpu" / "popular_modules.csv"
PAGE = Path(__file__).parent.parent / "docs" / "modules.md"
EXECUTORS = ("looped", "stacked", "threaded", "auto")
CLIENTS, ROUNDS, STEPS, SAMPLES, RATE = 2, 2, 2, 24, 0.01
COLUMNS = (
    *("module", "parameters", "input", "taken by", "difference", "looped", "stacked", "threaded", "seconds"),
    "the loop's",
)
HEAD = """# Popular modules

Modules with fewer than 30 million parameters, of {libraries}.
Their weights were drawn and dropout set to 0; the text models are of two layers of 64 columns. Each was trained by two
clients for two rounds of two steps in float64, and the averaged parameters were compared with those of a plain loop
over two copies of the module: the norm of the difference over the norm of what training has changed. "Taken by" is what
`--executor auto` took. "Difference" is `auto`'s, and "seconds" those of its whole call of `fastlocal.train`, beside
those of the loop.
`python -m bench.popular_modules` makes this page and `bench/results/cpu/popular_modules.csv`, with each executor's
difference or why it refused.

"""


def plain(popular: Popular, module: nn.Module) -> torch.Tensor:
    """The mean parameters after a loop over copies, each with an optimizer of its own."""
    inputs, targets = popular.data(SAMPLES)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    copies = [copy.deepcopy(module).double().train() for _ in range(CLIENTS)]
    optimizers = [torch.optim.SGD(one.parameters(), lr=RATE, momentum=0.9) for one in copies]
    per_epoch = SAMPLES // (CLIENTS * popular.batch)
    for step in range(ROUNDS * STEPS):
        epoch, within = divmod(step, per_epoch)
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch))
        for client, (one, optimizer) in enumerate(zip(copies, optimizers, strict=True)):
            ids = order[(within * CLIENTS + client) * popular.batch :][: popular.batch]
            optimizer.zero_grad()
            popular.loss(one(inputs[ids]), targets[ids]).backward()
            optimizer.step()
        if (step + 1) % STEPS == 0:
            with torch.no_grad():
                for values in zip(*(one.parameters() for one in copies), strict=True):
                    mean = torch.stack(values).mean(dim=0)
                    for value in values:
                        value.copy_(mean)
    return vector(copies[0])


def vector(module: nn.Module) -> torch.Tensor:
    """All parameters, in float64."""
    return nn.utils.parameters_to_vector(module.parameters()).detach().double()


def judged(popular: Popular, module: nn.Module, wanted: torch.Tensor, executor: str, folder: Path) -> Row:
    """One executor's columns: what took the module, the difference, why not, and seconds.

    The difference is relative to how far training has moved the parameters.
    """
    import fastlocal

    begun, data = time.monotonic(), popular.data(SAMPLES)
    row = {"executor": executor, "taken_by": "", "difference": "", "refused": "", "seconds": ""}
    try:
        run = fastlocal.train(
            module,
            data,
            tuple(half[: popular.batch] for half in data),
            clients=CLIENTS,
            local_steps=STEPS,
            rounds=ROUNDS,
            batch_size=popular.batch,
            lr=RATE,
            momentum=0.9,
            loss=popular.loss,
            executor=executor,
            precision="fp64",
            device="cpu",
            eval_every=ROUNDS,
            bn_batches=2,
            directory=folder / executor,
            progress=False,
        )
    except Exception as error:  # also what no refusal should be: the table is to show it
        said = " ".join(str(error).split())[:300]
        refused = isinstance(error, ValueError) and not (folder / executor).exists()
        row["refused"] = said if refused else f"{type(error).__name__}: {said}"
    else:
        moved = (wanted - vector(module)).norm()
        row["difference"] = f"{((vector(run.model) - wanted).norm() / moved).item():.2g}"
        settings = json.loads((run.directory / "config.json").read_text(encoding="utf-8"))
        row["taken_by"] = settings["machine"]["executor"]
    return row | {"seconds": f"{time.monotonic() - begun:.1f}"}


def rows_of(popular: Popular, folder: Path, executors: Sequence[str]) -> Iterator[Row]:
    """The loop's row and each executor's."""
    torch.set_num_threads(1)
    module = make(popular)
    size = sum(value.numel() for value in module.parameters())
    about = {"library": popular.library, "module": popular.name, "parameters": str(size), "input": popular.input}
    begun = time.monotonic()
    wanted = plain(popular, module)
    yield about | {"executor": "the loop", "seconds": f"{time.monotonic() - begun:.1f}"}
    for executor in executors:
        yield about | judged(popular, module, wanted, executor, folder)


def measured(popular: Popular, seconds: float, executors: Sequence[str]) -> list[Row]:
    """The rows of a module, from a process of its own that is stopped after so many seconds."""
    columns = ("library", "module", "parameters", "input", "executor", "taken_by", "difference", "refused", "seconds")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows"
        out.touch()
        command = [sys.executable, "-m", "bench.popular_modules", "--one", f"{popular.library}/{popular.name}"]
        command += ["--out", str(out), "--executors", *executors]
        ended = processes.run(command, time.monotonic() + seconds)
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    there = {row["executor"] for row in rows}
    for executor in ("the loop", *executors):
        if executor not in there:
            why = f"not within {seconds:.0f} s" if ended.status is None else (ended.lines or ("no words",))[-1]
            about = {"library": popular.library, "module": popular.name, "executor": executor}
            rows.append(about | {"refused": f"nothing: {why}"})
            break
    return [{name: row.get(name, "") for name in columns} | machine() for row in rows]


def page(rows: Sequence[Row]) -> str:
    """docs/modules.md."""
    kinds: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        kinds.setdefault((row["library"], row["module"]), {})[row["executor"]] = row
    names = {"torchvision": "torchvision", "timm": "timm", "transformers": "Hugging Face transformers"}
    present = [said for name, said in names.items() if any(library == name for library, _ in kinds)]
    lines = [
        HEAD.format(libraries=", ".join(present)),
        f"| {' | '.join(COLUMNS)} |\n",
        "| --- | --: | --- | --- | --: | --: | --: | --: | --: | --: |\n",
    ]
    reasons: dict[str, list[str]] = {}
    for popular in MODULES:
        found = kinds.get((popular.library, popular.name))
        if found is None:
            continue
        auto, loop = found.get("auto", {}), found.get("the loop", {})
        cells = []
        for executor in ("auto", "looped", "stacked", "threaded"):
            row = found.get(executor, {})
            cells.append(row.get("difference") or ("refused" if row.get("refused") else "not run"))
            if row.get("refused"):
                reasons.setdefault(f"`{executor}`: {row['refused']}", []).append(popular.name)
        millions = f"{int(loop.get('parameters') or 0) / 1e6:.1f} M"
        words = [f"{popular.library} {popular.name}", millions, popular.input, auto.get("taken_by", ""), *cells]
        words += [auto.get("seconds", ""), loop.get("seconds", "")]
        lines.append(f"| {' | '.join(words)} |\n")
    if reasons:
        lines.append("\nWhat was refused, and why:\n\n")
        lines += [f"- {said} ({', '.join(of)})\n" for said, of in sorted(reasons.items())]
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--seconds", type=float, default=600.0, help="for each module")
    parser.add_argument("--executors", nargs="+", default=list(EXECUTORS), choices=EXECUTORS)
    parser.add_argument("--go-on", action="store_true")
    parser.add_argument("--smallest-of-timm", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.smallest_of_timm:
        for name, size in smallest_of_timm():
            print(f"{size / 1e6:8.3f} M  {name}", flush=True)
        return
    known = {f"{popular.library}/{popular.name}": popular for popular in MODULES}
    if given.one:
        with tempfile.TemporaryDirectory() as folder, given.out.open("a", encoding="utf-8", buffering=1) as out:
            for row in rows_of(known[given.one], Path(folder), given.executors):
                out.write(json.dumps(row) + "\n")
        return
    unknown = set(given.only) - {popular.name for popular in MODULES}
    if unknown:
        parser.error(f"--only: no {', '.join(sorted(unknown))}")
    done = {(row["library"], row["module"]) for row in read(TABLE) if row["commit"] == machine()["commit"]}
    for popular in MODULES:
        if given.only and popular.name not in given.only:
            continue
        if given.go_on and (popular.library, popular.name) in done:
            continue
        rows = measured(popular, given.seconds, given.executors)
        merge(TABLE, rows, ("library", "module", "executor"))
        for row in rows:
            words = f"{popular.name:<28} {row['executor']:<9} {row['taken_by']:<9} {row['seconds']:>6} s"
            print(f"{words}  {row['refused'] or row['difference']}", flush=True)
        PAGE.write_text(page(read(TABLE)), encoding="utf-8")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
