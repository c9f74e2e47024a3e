"""List of the benches: `python -m bench`."""

from __future__ import annotations

import sys

BENCHES = {
    "count": ("How many launches and bytes does a step on a GPU take? Needs none.", "10 s"),
    "throughput": ("How fast do executors train, beside loops over modules and plain vmap?", "10 min"),
    "scaling": ("Does a client-step cost the same with more clients, or more local steps?", "5 min"),
    "between_rounds": ("How long does a GPU wait for the host between two rounds? Needs none.", "20 s"),
    "population": ("Does a round of a million clients cost what one of a thousand does?", "1 min"),
    "unequal": ("Does a client-step cost the same where clients' sizes differ?", "2 min"),
    "client_store": ("What does a round cost with the clients' state on disk?", "3 min"),
    "sweep": ("What do runs cost as replicas of one job, beside one by one?", "4 min"),
    "peers": ("How fast are Flower, pfl-research, FedJAX, BlazeFL and others?", "40 min"),
    "averaging": ("How long does averaging over ranks take, beside PyTorch's averager?", "3 min"),
    "loading": ("How fast is each data source, beside a DataLoader and FFCV's loader?", "3 min"),
    "memory": ("How good are predictions of peak memory?", "4 min"),
    "gpu_suite": ("Everything that a GPU can show: checks, training, kernels, targets.", "5 min"),
    "kernels": ("How near are the Triton kernels to the bandwidth of a copy? Needs a GPU.", "7 min"),
    "plot": ("The figure of throughput.csv.", "1 s"),
}
"""Question and approximate time of each bench, on two cores, or on a GPU if it needs one."""


def main() -> int:
    """Print a line for each bench."""
    for name, (question, duration) in BENCHES.items():
        print(f"python -m bench.{name:<16} {question}  (about {duration})")
    print("Options: python -m bench.NAME --help. Results: bench/results/.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
