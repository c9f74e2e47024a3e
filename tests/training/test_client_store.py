"""Clients' state on disk gives the runs that it gives in memory, to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastlocal
from fastlocal.checkpoint.resharding import CLIENT_PREFIX, read_saved
from fastlocal.params.client_stack import MOMENTUM
from tests.helpers.command_line import run, train_words, tree
from tests.helpers.fork_server import ForkServer
from tests.helpers.processes import on_ranks, run_each
from tests.helpers.run_files import difference, run_files
from tests.training.test_client_state import Follows

GENERATOR = torch.Generator().manual_seed(0)
INPUTS, TARGETS = torch.randn(160, 6, generator=GENERATOR), torch.arange(160) % 3
PARTS = fastlocal.partition.dirichlet(TARGETS, clients=9, alpha=0.6, seed=3, min_client_size=1)
OWN: dict[str, Any] = {"partition": PARTS, "client_state": "keep"}
KINDS: dict[str, dict[str, Any]] = {
    "a cohort": OWN | {"clients": 5, "chunk": 2},
    "a cohort at once": OWN | {"clients": 4, "executor": "looped"},
    "whoever is left": OWN | {"clients": 5, "clients_drop": 0.5, "chunk": 3, "executor": "threaded"},
    "unequal steps": OWN | {"clients": 6, "local_epochs": 0.6, "last_batch": "partial", "stragglers": 0.4, "chunk": 2},
    "adamw": OWN | {"clients": 5, "chunk": 2, "client_optimizer": "adamw", "momentum": 0.0, "lr": 0.01},
    "control variates alone": OWN | {"clients": 5, "chunk": 2, "client_state": "reset", "algorithm": "scaffold"},
    "averaged, and control variates": OWN | {"clients": 5, "client_state": "average", "algorithm": "scaffold"},
    "all clients": {"clients": 4, "chunk": 3},
    "all clients at once": {"clients": 4, "executor": "looped"},
}


def train(directory: Path, module: nn.Module | None = None, **settings: Any) -> fastlocal.Run:
    torch.manual_seed(3)
    fixed: dict[str, Any] = {"batch_size": 4, "rounds": 5, "lr": 0.1, "momentum": 0.9, "executor": "stacked"}
    if "local_epochs" not in settings:
        fixed["local_steps"] = 3
    data = (INPUTS, TARGETS)
    return fastlocal.train(module or Follows(), data, data, directory=directory, progress=False, **fixed | settings)


def rows_of(directory: Path) -> dict[str, Any]:
    """Return the rows in a run's last state."""
    state = read_saved(directory / "resume.pt", 0, 1)
    return {
        name.removeprefix(CLIENT_PREFIX): rows
        for name, rows in state.tensors.items()
        if name == MOMENTUM or name.startswith(CLIENT_PREFIX)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_as_in_memory(kind: str, tmp_path: Path) -> None:
    """Momentum, a weight that is not trained and starts each round from its mean, and buffers of three dtypes."""
    found = {store: train(tmp_path / store, client_store=store, **KINDS[kind]) for store in ("memory", "disk")}
    assert found["disk"].history == found["memory"].history
    states = [run.model.state_dict() for run in found.values()]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    expected = rows_of(tmp_path / "memory")
    files = run_files(tmp_path / "disk")["clients"]
    assert len(files) == len(expected) >= 5
    assert all(name.startswith("status of ") for name in rows_of(tmp_path / "disk"))
    for (name, rows), clients in zip(expected.items(), files.values(), strict=True):
        if name.startswith("algorithm ") or kind != "averaged, and control variates":
            assert clients or name == "teacher"  # which has the value of all at the end of a round
        for client, content in clients.items():
            assert rows[client].numpy().tobytes() == content, (name, client)


def test_two_processes(fork_server: ForkServer, data: Path, tmp_path: Path) -> None:
    for store in ("memory", "disk"):
        words = train_words(data, tmp_path / store)
        words = [*words[: words.index("--batch-size")], "--batch-size", "4", "--rounds", "6", "--client-lr", "0.1"]
        words += ["--partition", "iid", "--population", "13", "--clients", "6", "--momentum", "0.9", "--step1", "2"]
        words += ["--client-state", "keep", "--chunk", "2", "--debug", "--executor", "looped"]
        words += ["--client-store", store]
        on_ranks(fork_server, 2, words, tmp_path / "log")
    found = [run_files(tmp_path / store) for store in ("disk", "memory")]
    assert len(found[0].pop("clients")["0.momentum.rows"]) > 6
    assert difference(*found) == "differ: resume.pt"


PROGRAM = """
import resource, sys
from pathlib import Path
import torch
import fastlocal
from fastlocal.params.client_stack import ClientStore
model = torch.nn.Linear(1000, 500)
data = torch.randn(120, 1000), torch.arange(120)
parts = fastlocal.partition.iid(120, clients=120, seed=0)
sizes = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
limit = 1024 * int(sizes["VmData"].split()[0]) + 150 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    row = {"momentum": torch.zeros(sum(value.numel() for value in model.parameters()))}
    ClientStore(range(120), row, 2, torch.device("cpu"))
except RuntimeError as error:
    assert "allocate memory" in str(error)
else:
    raise AssertionError("a store in memory fits")
run = fastlocal.train(
    model, data, data, partition=parts, clients=20, cohort_sampling="cyclic", client_state="keep", client_store="disk",
    chunk=2, rounds=7, lr=0.1, momentum=0.9, batch_size=1, local_steps=1, executor="looped", progress=False,
    directory=Path(sys.argv[1]),
)
written = (Path(sys.argv[1]) / "clients" / "0.momentum.rows").stat().st_blocks * 512
print("trained", len(run.history), written >= 120 * row["momentum"].nbytes)
"""


def test_a_store_larger_than_memory(fork_server: ForkServer, tmp_path: Path) -> None:
    """120 momenta of 500,500 numbers are 229 MiB; the process may take 150 MiB more than at its start."""
    ((status, said),) = run_each(fork_server, tmp_path / "log{rank}", [tmp_path / "run"], program=PROGRAM)
    assert (status, said.splitlines()[-1]) == (0, "trained 7 True"), said
    shutil.rmtree(tmp_path / "run")


def test_the_state_before_a_damaged_one(tmp_path: Path) -> None:
    """Rows go back by two saves; what is trained again is the same."""
    settings = KINDS["a cohort"] | {"client_store": "disk"}
    train(tmp_path / "whole", **settings, rounds=7)
    train(tmp_path / "run", **settings, rounds=3)
    shutil.copytree(tmp_path / "run", tmp_path / "early")
    train(tmp_path / "run", **settings, rounds=5, resume=True)
    content = bytearray((tmp_path / "run" / "resume.pt").read_bytes())
    content[-5] ^= 1
    (tmp_path / "run" / "resume.pt").write_bytes(content)
    train(tmp_path / "run", **settings, rounds=7, resume=True)
    assert difference(run_files(tmp_path / "run"), run_files(tmp_path / "whole")) == ""
    shutil.rmtree(tmp_path / "early" / "clients")
    with pytest.raises(fastlocal.UsageError, match=r"clients, which holds the clients' state, is missing; .*overwrite"):
        train(tmp_path / "early", **settings, rounds=5, resume=True)
    train(tmp_path / "early", **settings, rounds=7, overwrite=True)
    assert difference(run_files(tmp_path / "early"), run_files(tmp_path / "whole")) == ""


@pytest.mark.parametrize("given", [{"momentum": 0.0}, {"client_state": "reset"}, {"client_state": "average"}], ids=str)
def test_nothing_to_keep(given: dict[str, Any], tmp_path: Path) -> None:
    settings: dict[str, Any] = OWN | {"clients": 4, "module": nn.Linear(6, 3)} | given
    train(tmp_path / "run", client_store="disk", **settings)
    assert not (tmp_path / "run" / "clients").exists()


def test_a_new_run_in_an_old_directory(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its rows and journals go, and a file of the user's stays."""
    words = [*train_words(data, tmp_path / "run"), "--momentum", "0.9"]
    assert run(capsys, *words, "--client-store", "disk", "--save-every", "1").status == 0
    before = {name for name in tree(tmp_path / "run") if name.startswith("clients")}
    assert {"clients/store.json", "clients/0.momentum.rows"} < before
    outcome = run(capsys, *words, "--continue", "--epochs", "2")
    assert outcome.status == 2 and "--client-store memory: the run was trained with disk" in outcome.err
    (tmp_path / "run" / "clients" / "notes.txt").write_text("mine")
    assert run(capsys, *words, "--overwrite").status == 0
    assert {name for name in tree(tmp_path / "run") if name.startswith("clients")} == {"clients", "clients/notes.txt"}


def test_a_disk_with_too_little_room(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*train_words(data, tmp_path / "run"), "--momentum", "0.9", "--client-store", "disk"]
    plan = run(capsys, "plan", *words[1:])
    row = (64 * 128 + 128 + 128 * 4 + 4) * 4
    size = f"{2 * row / 2**20:,.1f} MiB for 2 clients and {2 * 2 * row / 2**20:,.1f} MiB of before-images"
    (line,) = (line for line in plan.out.splitlines() if line.startswith("client store"))
    assert f"in {tmp_path / 'run' / 'clients'}, at most {size}" in line
    few = "--partition iid --population 60 --clients 3 --batch-size 8 --client-lr 0.1 --rounds 4 --client-state keep"
    words_of_few = [*words[: words.index("--batch-size")], *few.split(), "--momentum", "0.9", "--client-store", "disk"]
    assert "MiB for 12 of 60 clients and" in run(capsys, "plan", *words_of_few[1:]).out
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 2 * row))
    outcome = run(capsys, *words)
    assert outcome.status == 2 and len(outcome.err.splitlines()) == 1 and not (tmp_path / "run").exists()
    assert "--client-store disk: " in outcome.err and "are free; name another --log-pth" in outcome.err


def test_reading_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the next chunk, also of the next round, are read while a chunk trains; it takes them."""
    from fastlocal.params.disk_store import DiskStore

    asked: list[Any] = []
    read_ahead, fetch = DiskStore.read_ahead, DiskStore.fetch

    def ahead(store: DiskStore, upcoming: Any) -> None:
        read_ahead(store, upcoming)
        asked.append(("ahead", None if store._ahead is None else store._ahead.clients.tolist()))

    def fetched(store: DiskStore, clients: Any) -> Any:
        asked.append(("fetch", [int(client) for client in clients]))
        return fetch(store, clients)

    monkeypatch.setattr(DiskStore, "read_ahead", ahead)
    monkeypatch.setattr(DiskStore, "fetch", fetched)
    train(tmp_path / "run", nn.Linear(6, 3), client_store="disk", **KINDS["a cohort"])
    assert len(asked) == 2 * 5 * 3
    assert asked[-1] == ("ahead", None)
    assert all(
        one == "ahead" and next_ == "fetch" and rows == taken
        for (one, rows), (next_, taken) in zip(asked[1:-1:2], asked[2:-1:2], strict=True)
    )
    assert json.loads((tmp_path / "run" / "clients" / "store.json").read_text())["row_bytes"] == {
        "0.momentum.rows": 4 * 21
    }
