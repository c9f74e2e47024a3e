"""Popular modules beside a plain loop: which executor takes each, its difference from the loop, and what is refused.

    pip install timm transformers
    python -m tests.strangers.popular_modules [--only NAME ...] [--seconds 600] [--executors auto ...] [--go-on]

Two clients train for two rounds of two steps in float64, once in a plain loop and once by each executor, every module
in a process of its own. Weights are drawn, never loaded; dropout and stochastic depth are 0, as a plain loop draws
other masks. Writes bench/results/cpu/popular_modules.csv and docs/modules.md. --go-on leaves out modules whose rows are
of this commit.
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
from bench.common import RESULTS, ROOT, Row, commit, machine_columns, merge_rows, read_rows
from tests.strangers.popular_zoo import MODULES, Popular, make

TABLE = RESULTS / "cpu" / "popular_modules.csv"
PAGE = ROOT / "docs" / "modules.md"
EXECUTORS = ("looped", "stacked", "threaded", "auto")
LOOP = "the loop"
CLIENTS, ROUNDS, STEPS, SAMPLES, LEARNING_RATE = 2, 2, 2, 24, 0.01
COLUMNS = ("library", "module", "parameters", "input", "executor", "taken_by", "difference", "refused", "seconds")
HEAD = """# Popular modules

Modules with fewer than 30 million parameters, of {libraries}.
Their weights were drawn and dropout set to 0; the text models are of two layers of 64 columns. Each was trained by two
clients for two rounds of two steps in float64, and the averaged parameters were compared with those of a plain loop
over two copies of the module: the norm of the difference over the norm of what training has changed. "Taken by" is what
`--executor auto` took. "Difference" is `auto`'s, and "seconds" those of its whole call of `fastlocal.train`, beside
those of the loop.
`python -m tests.strangers.popular_modules` makes this page and `bench/results/cpu/popular_modules.csv`, with each
executor's difference or why it refused.

| module | parameters | input | taken by | difference | looped | stacked | threaded | seconds | the loop's |
| --- | --: | --- | --- | --: | --: | --: | --: | --: | --: |
"""


def loop_params(popular: Popular, module: nn.Module) -> torch.Tensor:
    """Train copies of a module in a plain loop, each with its own optimizer; return the averaged parameters."""
    inputs, targets = popular.data(SAMPLES)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    copies = [copy.deepcopy(module).double().train() for _ in range(CLIENTS)]
    optimizers = [torch.optim.SGD(one.parameters(), lr=LEARNING_RATE, momentum=0.9) for one in copies]
    steps_per_epoch = SAMPLES // (CLIENTS * popular.batch)
    for step in range(ROUNDS * STEPS):
        epoch, step_of_epoch = divmod(step, steps_per_epoch)
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch))
        for client, (one, optimizer) in enumerate(zip(copies, optimizers, strict=True)):
            ids = order[(step_of_epoch * CLIENTS + client) * popular.batch :][: popular.batch]
            optimizer.zero_grad()
            popular.loss(one(inputs[ids]), targets[ids]).backward()
            optimizer.step()
        if (step + 1) % STEPS == 0:
            with torch.no_grad():
                for values in zip(*(one.parameters() for one in copies), strict=True):
                    mean = torch.stack(values).mean(dim=0)
                    for value in values:
                        value.copy_(mean)
    return flat_params(copies[0])


def flat_params(module: nn.Module) -> torch.Tensor:
    """Return all parameters, [n_params] fp64."""
    return nn.utils.parameters_to_vector(module.parameters()).detach().double()


def executor_row(popular: Popular, module: nn.Module, expected: torch.Tensor, executor: str, folder: Path) -> Row:
    """Train by one executor and return its columns.

    Args:
        popular: Description of the module.
        module: The module.
        expected: Parameters from the loop; the difference is relative to how far the loop has moved them.
        executor: Name of the executor.
        folder: Folder for the run directory.
    """
    import fastlocal

    start_time, data = time.monotonic(), popular.data(SAMPLES)
    row = {"executor": executor, "taken_by": "", "difference": "", "refused": ""}
    try:
        run = fastlocal.train(
            module,
            data,
            tuple(values[: popular.batch] for values in data),
            clients=CLIENTS,
            local_steps=STEPS,
            rounds=ROUNDS,
            batch_size=popular.batch,
            lr=LEARNING_RATE,
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
    except Exception as error:  # the table also shows errors that are no refusals
        message = " ".join(str(error).split())[:300]
        refused = isinstance(error, ValueError) and not (folder / executor).exists()
        row["refused"] = message if refused else f"{type(error).__name__}: {message}"
    else:
        change = (expected - flat_params(module)).norm()
        row["difference"] = f"{((flat_params(run.model) - expected).norm() / change).item():.2g}"
        settings = json.loads((run.directory / "config.json").read_text(encoding="utf-8"))
        row["taken_by"] = settings["machine"]["executor"]
    return row | {"seconds": f"{time.monotonic() - start_time:.1f}"}


def make_rows(popular: Popular, folder: Path, executors: Sequence[str]) -> Iterator[Row]:
    """Train a module in this process; yield the row of the loop and of each executor."""
    torch.set_num_threads(1)
    module = make(popular)
    size = sum(value.numel() for value in module.parameters())
    columns = {"library": popular.library, "module": popular.name, "parameters": str(size), "input": popular.input}
    start_time = time.monotonic()
    expected = loop_params(popular, module)
    yield columns | {"executor": LOOP, "seconds": f"{time.monotonic() - start_time:.1f}"}
    for executor in executors:
        yield columns | executor_row(popular, module, expected, executor, folder)


def measure(popular: Popular, seconds: float, executors: Sequence[str]) -> list[Row]:
    """Return the rows of a module from a process of its own, which is stopped after this time."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows"
        out.touch()
        command = [sys.executable, "-m", "tests.strangers.popular_modules", "--out", str(out)]
        command += ["--one", f"{popular.library}/{popular.name}", "--executors", *executors]
        result = processes.run(command, time.monotonic() + seconds)
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    present = {row["executor"] for row in rows}
    first_missing = next((executor for executor in (LOOP, *executors) if executor not in present), None)
    if first_missing is not None:
        why = f"not within {seconds:.0f} s" if result.status is None else (result.lines or ("no output",))[-1]
        columns = {"library": popular.library, "module": popular.name, "executor": first_missing}
        rows.append(columns | {"refused": f"nothing: {why}"})
    return [{name: row.get(name, "") for name in COLUMNS} | machine_columns() for row in rows]


def page(rows: Sequence[Row]) -> str:
    """Return the text of docs/modules.md."""
    by_module: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by_module.setdefault((row["library"], row["module"]), {})[row["executor"]] = row
    names = {"torchvision": "torchvision", "timm": "timm", "transformers": "Hugging Face transformers"}
    libraries = {library for library, _ in by_module}
    lines = [HEAD.format(libraries=", ".join(name for library, name in names.items() if library in libraries))]
    reasons: dict[str, list[str]] = {}
    for popular in MODULES:
        module_rows = by_module.get((popular.library, popular.name))
        if module_rows is None:
            continue
        auto, loop = module_rows.get("auto", {}), module_rows.get(LOOP, {})
        cells = [f"{popular.library} {popular.name}", f"{int(loop.get('parameters') or 0) / 1e6:.1f} M", popular.input]
        cells.append(auto.get("taken_by", ""))
        for executor in ("auto", "looped", "stacked", "threaded"):
            row = module_rows.get(executor, {})
            cells.append(row.get("difference") or ("refused" if row.get("refused") else "not run"))
            if row.get("refused"):
                reasons.setdefault(f"`{executor}`: {row['refused']}", []).append(popular.name)
        cells += [auto.get("seconds", ""), loop.get("seconds", "")]
        lines.append(f"| {' | '.join(cells)} |\n")
    if reasons:
        lines.append("\nWhat was refused, and why:\n\n")
        lines += [f"- {reason} ({', '.join(modules)})\n" for reason, modules in sorted(reasons.items())]
    return "".join(lines)


def main() -> None:
    """Measure the modules, and write table and page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--seconds", type=float, default=600.0, help="for each module")
    parser.add_argument("--executors", nargs="+", default=list(EXECUTORS), choices=EXECUTORS)
    parser.add_argument("--go-on", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    by_name = {f"{popular.library}/{popular.name}": popular for popular in MODULES}
    if options.one:
        with tempfile.TemporaryDirectory() as folder, options.out.open("a", encoding="utf-8", buffering=1) as out:
            for row in make_rows(by_name[options.one], Path(folder), options.executors):
                out.write(json.dumps(row) + "\n")
        return
    unknown = set(options.only) - {popular.name for popular in MODULES}
    if unknown:
        parser.error(f"--only: no {', '.join(sorted(unknown))}")
    current = {(row["library"], row["module"]) for row in read_rows(TABLE) if row["commit"] == commit()}
    for popular in MODULES:
        if options.only and popular.name not in options.only:
            continue
        if options.go_on and (popular.library, popular.name) in current:
            continue
        rows = measure(popular, options.seconds, options.executors)
        merge_rows(TABLE, rows, ("library", "module", "executor"))
        for row in rows:
            columns = f"{popular.name:<28} {row['executor']:<9} {row['taken_by']:<9} {row['seconds']:>6} s"
            print(f"{columns}  {row['refused'] or row['difference']}", flush=True)
        PAGE.write_text(page(read_rows(TABLE)), encoding="utf-8")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
