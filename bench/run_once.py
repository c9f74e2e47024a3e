"""Run one large case of an op on a GPU, the second of two times before the eyes of a profiler.

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
    run()  # compiles, and chooses a tile
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    run()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
