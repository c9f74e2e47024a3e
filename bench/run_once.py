"""Run one large case of an op twice on a GPU, for a profiler that watches.

    python -m bench.run_once OP CASE
"""

from __future__ import annotations

import sys

import torch

from bench.kernels import runner
from fastlocal import kernels
from fastlocal.kernels.case import cases


def main(op: str, name: str) -> None:
    case = next(case for case in cases(op) if case.name == name)
    run = runner(case, kernels.get(op, "triton", "cuda"))
    for _ in range(2):
        run()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
