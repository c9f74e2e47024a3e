"""Milliseconds per round that averaging over ranks takes, beside plain all-reduces and PyTorch's own averagers.

    python -m bench.averaging                                   gloo, 2 and 4 processes of one thread on this machine
    python -m bench.averaging --models resnet20 --ranks 2 --turns 40

Every way to average runs in the same processes, in turns; a turn starts with a barrier, and counts for the slowest
rank. Each way's mean is first compared with the exact one in float64. A row holds the median turn with its 20th and
80th percentiles, and the median of its ratios to `cat + all_reduce + copy` in the same turn (above 1: faster). Ways
that train in chunks are compared with each other. `--round` times rounds of `fastlocal train` instead: what share
averaging has at H=4. Rows go to bench/results/cpu/averaging.csv, where they replace older ones of the same case.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bench import averagers
from bench.case import RESULTS, cores, machine
from bench.tables import Row, merge
from bench.turns import spread

MODELS = ("resnet20", "resnet56", "torchvision.resnet50")
KEYS = ("model", "ranks", "variant", "bucket_mb")
TRAIN_MS = 20.0
"""Of a chunk, in the ways that train."""


def rank_main(rank: int, ranks: int, asked: argparse.Namespace, model: str, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    found = {}
    for name, way, exact in averagers.ways(model, asked.bucket_mb, TRAIN_MS):
        fault = averagers.fault_of(name, way, exact, 6 * averagers.CHANGE)
        said: list[str | None] = [None] * ranks
        dist.all_gather_object(said, fault)
        found[name] = (way, next(filter(None, said), ""), list[float]())
    took = torch.zeros(())
    end = time.monotonic() + asked.seconds
    for turn in range(asked.turns + 1):
        over = torch.tensor(float(turn > 3 and time.monotonic() > end))
        dist.all_reduce(over)
        if over:
            break
        for way, fault, seconds in list(found.values())[:: 1 if turn % 2 else -1]:
            if fault:
                continue
            way.before()
            dist.barrier()
            began = time.perf_counter()
            way.run()
            took.fill_(time.perf_counter() - began)
            dist.all_reduce(took, op=dist.ReduceOp.MAX)
            if turn:
                seconds.append(took.item())
    if rank == 0:
        text = json.dumps({name: (fault, seconds) for name, (_, fault, seconds) in found.items()})
        Path(folder, "found.json").write_text(text)
    dist.barrier()
    dist.destroy_process_group()


def measured(model: str, ranks: int, asked: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_main, args=(ranks, asked, model, folder), nprocs=ranks)
        found = json.loads(Path(folder, "found.json").read_text())
    rows = []
    for name, (fault, seconds) in found.items():
        reference = averagers.AT_END if name == averagers.EARLY else averagers.PLAIN
        of = "" if name == averagers.AT_END else reference
        row = {"model": model, "ranks": str(ranks), "variant": name, "bucket_mb": f"{asked.bucket_mb:g}"}
        row |= dict.fromkeys(("median_ms", "p20_ms", "p80_ms", "ratio"), "") | {"of": of, "turns": str(len(seconds))}
        if seconds:
            numbers = zip(("median_ms", "p20_ms", "p80_ms"), spread(seconds), strict=True)
            row |= {key: f"{value * 1e3:.2f}" for key, value in numbers}
        if seconds and of:
            row["ratio"] = f"{statistics.median(a / b for a, b in zip(found[of][1], seconds, strict=False)):.2f}"
        rows.append(row | {"note": fault})
    return rows


def share_of_a_round(model: str, ranks: int, rounds: int) -> Row:
    """What part of the time averaging takes at H=4, a client of batch 32 per rank, as `fastlocal train` says itself."""
    words = f"""-m torch.distributed.run --standalone --nproc-per-node {ranks} -m fastlocal train --dataset synthetic
        --model {model} --executor looped --batch-size 32 --clients {ranks} --replacement 1 --aug 0 --client-lr 0.01
        --step1 4 --step2 4 --step3 4 --rounds {rounds} --eval-freq1 {rounds} --save-every 0 --bn-batches 1"""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *words.split(), "--log-pth", f"{folder}/run"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    said = re.search(r"([\d.]+)% averaging", done.stdout + done.stderr)
    if done.returncode or said is None:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}\n{done.stderr[-2000:]}")
    blank = dict.fromkeys(("bucket_mb", "median_ms", "p20_ms", "p80_ms", "ratio", "of"), "")
    about = {"model": model, "ranks": str(ranks), "variant": "fastlocal train, H=4, batch 32"}
    return about | blank | {"turns": str(rounds), "note": f"averaging takes {said[1]} % of the time"}


def table(rows: Sequence[Row]) -> str:
    lines = ["| variant | ms | p20 | p80 | ratio |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        numbers = f"{row['median_ms']} | {row['p20_ms']} | {row['p80_ms']} | {row['ratio']}"
        lines.append(f"| {row['variant']} | {numbers} | {row['note']}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.averaging", description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--ranks", nargs="+", type=int, default=(2, 4))
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=20.0, help="after which a case's turns end")
    parser.add_argument("--bucket-mb", type=float, default=25.0)
    parser.add_argument("--round", type=int, help="rounds of `fastlocal train` to time instead")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu", help="folder for averaging.csv")
    asked = parser.parse_args(arguments)
    about, failed = machine() | {"device": f"gloo, {cores()} cores"}, False
    for ranks in asked.ranks:
        for model in asked.models:
            rows = [share_of_a_round(model, ranks, asked.round)] if asked.round else measured(model, ranks, asked)
            failed = failed or (not asked.round and any(row["note"] for row in rows))
            merge(asked.out / "averaging.csv", [row | about for row in rows], KEYS)
            print(f"{model}, {ranks} ranks\n\n{table(rows)}\n", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
