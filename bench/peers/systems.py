"""Systems of the comparison: how each is started, and what it cannot do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.peers.environments import Environment
from bench.peers.workloads import Workload

SIDES = Path(__file__).with_name("sides")
LOOP = "loop over modules"
"""Name of the baseline that every system is timed against."""
OWN = "fastlocal"


@dataclass(frozen=True)
class System:
    """A system that trains workloads.

    Attributes:
        name: Name in tables.
        side: Program in bench/peers/sides.
        environment: What it is installed with; None: this process's environment.
        arguments: Further arguments of the program.
        variables: Environment variables of its processes.
        cohorts: Whether it trains cohorts of a population.
        compared: Whether its global model is that of the others after the checked rounds.
    """

    name: str
    side: str
    environment: Environment | None = None
    arguments: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    cohorts: bool = True
    compared: bool = True

    def refusal(self, workload: Workload) -> str:
        """Return why it cannot train a workload, or an empty string."""
        if not self.cohorts and workload.population > workload.clients:
            return "every client is a process, and there are no cohorts"
        return ""


_JAX = ("jax==0.10.2", "jaxlib==0.10.2")
_ONE_THREAD = (("OMP_NUM_THREADS", "1"),)
SYSTEMS = (
    System(OWN, "fastlocal_rounds.py"),
    System("loop, a process per core", "loop_per_core_rounds.py", variables=_ONE_THREAD),
    System(
        "PostLocalSGDOptimizer", "postlocal_rounds.py", variables=_ONE_THREAD, cohorts=False, compared=False
    ),
    System("Flower", "flower_rounds.py", Environment(("flwr[simulation]==1.42.0", "ray==2.55.1"))),
    System("pfl-research", "pfl_rounds.py", Environment(("pfl==0.6.0",))),
    System(
        "FedJAX", "fedjax_rounds.py",
        Environment(("fedjax==0.0.17", "optax==0.2.8", "dm-haiku==0.0.17", *_JAX), torch=False),
    ),
    System("DrJAX", "drjax_rounds.py", Environment(("drjax==0.2.1", *_JAX), torch=False)),
    System(
        "BlazeFL", "blazefl_rounds.py", Environment(("blazefl==2.0.3", "numpy", "tqdm"), python="3.12"),
        variables=_ONE_THREAD,
    ),
    System("fluke", "fluke_rounds.py", Environment(("fluke-fl==0.8.1",))),
)  # fmt: skip
"""fastlocal first, then the reference's ways, then the peers."""
