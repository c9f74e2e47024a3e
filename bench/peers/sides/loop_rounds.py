"""The reference's way: a module and an optimizer for each client, one step after the other, then the mean.

    PYTHON loop_rounds.py FOLDER FACTS [reset]

With `reset` the optimizers begin anew in every round. The clients of a cohort take the modules in turn, and begin at
the mean.
"""

from __future__ import annotations

import os
import sys

import torch
from nets import torch_module
from protocol import Turns, read_workload
from torch_client import check_loss, make_optimizer, train_client


def main() -> None:
    """Train until nobody asks any more."""
    turns, work = Turns(), read_workload()
    reset = sys.argv[3:] == ["reset"] or work.population > work.clients
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    modules = [torch_module(work.net, work.start) for _ in range(work.clients)]
    optimizers = [make_optimizer(work, module) for module in modules]

    def train_round(number: int) -> None:
        if reset:
            optimizers[:] = [make_optimizer(work, module) for module in modules]
        for place, (module, optimizer) in enumerate(zip(modules, optimizers, strict=True)):
            train_client(module, optimizer, *work.samples(number, place))
        with torch.no_grad():
            for values in zip(*(module.parameters() for module in modules), strict=True):
                mean = torch.stack(values).mean(0)
                for value in values:
                    value.copy_(mean)

    turns.ready(lambda: check_loss(work, modules[0]), momentum="reset" if reset else "kept")
    turns.serve(train_round)


if __name__ == "__main__":
    main()
