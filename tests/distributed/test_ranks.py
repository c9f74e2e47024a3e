"""What launchers tell a process, and which clients are its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlocal.common.errors import UsageError
from fastlocal.distributed.ranks import LaunchInfo, first_host, split_contiguous, tasks_per_node

TORCHRUN = {
    **{"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"},
    **{"MASTER_ADDR": "node0", "MASTER_PORT": "29400", "TORCHELASTIC_USE_AGENT_STORE": "True"},
    **{"TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_MAX_RESTARTS": "3"},
}
SRUN = {
    **{"SLURM_PROCID": "4", "SLURM_STEP_NUM_TASKS": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"},
    **{"SLURM_STEP_TASKS_PER_NODE": "3,2", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "123456"},
    **{"SLURM_STEP_ID": "0"},
}


def test_torchrun() -> None:
    assert LaunchInfo.from_environment(TORCHRUN) == LaunchInfo(
        5, 8, 1, 4, 1, "node0", 29400, agent_store=True, restart=1, max_restarts=3
    )


def test_srun() -> None:
    found = LaunchInfo.from_environment(SRUN)
    assert found == LaunchInfo(4, 5, 1, 2, 1, "gpu07", found.port)
    assert found.port is not None and 20_000 <= found.port < 40_000
    assert LaunchInfo.from_environment(SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "999"}).address == "10.0.0.1"
    assert LaunchInfo.from_environment(SRUN | TORCHRUN).size == 8, "torchrun within a SLURM job"


def test_one_process() -> None:
    assert LaunchInfo.from_environment({}) == LaunchInfo()
    assert LaunchInfo.from_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == LaunchInfo(), (
        "a batch script is no task of a step"
    )
    assert LaunchInfo.from_environment({"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "2"}).restart == 2


def test_a_launcher_is_known_by_its_folder() -> None:
    once = {"WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "job"}
    again = once | {"TORCHELASTIC_MAX_RESTARTS": "1"}
    folder = {"TORCHELASTIC_ERROR_FILE": "/tmp/x/job_1/attempt_0/3/error.json"}
    assert LaunchInfo.from_environment(again | folder).launch_id == "/tmp/x/job_1"
    assert LaunchInfo.from_environment(again).launch_id == "job"
    assert LaunchInfo.from_environment(once | folder).launch_id == "", "which starts nothing again"


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE 'two'"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK 2 of WORLD_SIZE 2"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}, "LOCAL_RANK 1 of LOCAL_WORLD_SIZE 1"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "70000"}, "MASTER_PORT 70000"),
        ({name: value for name, value in SRUN.items() if "PER_NODE" not in name}, "SLURM_NODEID 1"),
    ],
)
def test_variables_that_make_no_sense(environment: dict[str, str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        LaunchInfo.from_environment(environment)


@given(clients=st.integers(1, 5000), size=st.integers(1, 70))
def test_every_client_is_dealt_once(clients: int, size: int) -> None:
    parts = [split_contiguous(clients, rank, size) for rank in range(size)]
    assert [client for part in parts for client in part] == list(range(clients))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("gpu[03-05,9],login", "gpu03"), ("n[1,3]", "n1"), ("a-1,b", "a-1"), ("n[001-128]", "n001")],
)
def test_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_tasks_of_each_node() -> None:
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
