"""Clients' state in files against the same in memory: any operations, and deaths between any two bytes written."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastlocal.common.errors import UsageError
from fastlocal.params import row_files, row_journal
from fastlocal.params.client_stack import ClientRows, ClientStore, SavedClients
from fastlocal.params.disk_store import IDENTITY_NAME, DiskStore, go_back

CLIENTS, CHUNK, CPU = range(3, 20), 5, torch.device("cpu")
START = {
    "momentum": torch.zeros(7),
    "a.mean/of": torch.tensor([1.5, -2.0], dtype=torch.float64),
    "steps": torch.tensor(4),
    "phase": torch.ones(2, 2, dtype=torch.complex64),
    "seen": torch.zeros(3, dtype=torch.bool),
    "nothing": torch.empty(0, 3),
}
"""Rows of every kind of number, of one number, and of none."""


class Killed(OSError):
    """The process ended while it wrote."""


class Deadly:
    """Writes as row_files does, up to a number of bytes, and then never again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self._write_at = row_files.write_at
        for module in (row_files, row_journal):
            monkeypatch.setattr(module, "write_at", self.write_at)

    def write_at(self, file: int, data: memoryview, at: int | None) -> None:
        if self.left is not None:
            whole, self.left = self.left >= len(data), max(self.left - len(data), 0)
            if not whole:
                self._write_at(file, data[: self.left], at)
                raise Killed(errno.ENOSPC, "killed")
        self._write_at(file, data, at)


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> Deadly:
    return Deadly(monkeypatch)


def on_disk(folder: Path, clients: range = CLIENTS) -> DiskStore:
    return DiskStore(clients, START, CHUNK, CPU, folder=folder, rank=0)


def drawn(draw: random.Random, value: Tensor) -> Tensor:
    bits = torch.randint(0, 100, value.shape, generator=torch.Generator().manual_seed(draw.randrange(10**6)))
    return bits.to(value.dtype) if value.dtype != torch.bool else bits > 50


def chunks(draw: random.Random) -> Iterator[ClientRows]:
    """Chunks of one cohort after the other: all clients, a range of them, or some in any order."""
    while True:
        ids = list(CLIENTS) if draw.random() < 0.2 else draw.sample(CLIENTS, draw.randrange(1, 12))
        for at in range(0, len(ids), CHUNK):
            some = ids[at : at + CHUNK]
            follow = some == list(range(some[0], some[0] + len(some)))
            yield range(some[0], some[0] + len(some)) if follow else torch.tensor(some)


class Pair:
    """A store on disk and one in memory, to which the same is done."""

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.folder, self.draw, self.chunks = folder, draw, chunks(draw)
        self.disk, self.memory = on_disk(folder), ClientStore(CLIENTS, START, CHUNK, CPU)
        self.upcoming: ClientRows | None = None
        self.states: list[tuple[SavedClients, dict[str, Tensor]]] = []

    def train(self) -> None:
        """Change the rows of a chunk, while those of another one, the next or not, are read."""
        rows = next(self.chunks) if self.upcoming is None else self.upcoming
        trained = self.disk.fetch(rows), self.memory.fetch(rows)
        self.upcoming = self.draw.choice([None, next(self.chunks)])
        guess = self.upcoming if self.draw.random() < 0.8 else next(self.chunks)
        self.disk.read_ahead(lambda: guess)
        for name, values in trained[0].items():
            assert torch.equal(values, trained[1][name]), name
            new = drawn(self.draw, values)
            values.copy_(new)
            trained[1][name].copy_(new)
        self.memory.store(rows)
        self.disk.store(rows)

    def fill(self) -> None:
        values = {name: drawn(self.draw, START[name]) for name in self.draw.sample(list(START), 2)}
        self.memory.fill(values)
        self.disk.fill(values)

    def save(self) -> None:
        """Take a snapshot, which is saved or not; the journals that lead back to no state are removed."""
        saved = self.disk.save()
        rows = {name: value.clone() for name, value in saved.rows.items()}
        shared = {name: value.clone() for name, value in saved.shared.items()}
        if self.draw.random() < 0.7:
            memory = {name: value.clone() for name, value in self.memory.all.items()}
            self.states = [*self.states, (SavedClients(rows, shared, saved.about), memory)][-2:]
            row_journal.forget(self.folder, min(epoch(state) for state, _ in self.states))

    def go_on(self, back: int) -> None:
        """Begin anew from a saved state, or from the start if there is none."""
        self.upcoming = None
        if not self.states:
            for path in self.folder.glob("*"):
                path.unlink()
            self.disk, self.memory = on_disk(self.folder), ClientStore(CLIENTS, START, CHUNK, CPU)
            return
        self.states = self.states[: len(self.states) - back] if back < len(self.states) else self.states
        saved, memory = self.states[-1]
        assert saved.about is not None
        go_back(self.folder, saved.about)
        self.disk = on_disk(self.folder)
        self.disk.restore(saved)
        for name, rows in self.memory.all.items():
            rows.copy_(memory[name])

    def assert_equal(self) -> None:
        found = self.disk.rows(CLIENTS)
        assert all(torch.equal(found[name], rows) for name, rows in self.memory.all.items())


def epoch(saved: SavedClients) -> int:
    assert saved.about is not None
    return int(saved.about["epoch"])


@pytest.mark.parametrize("seed", range(40))
def test_as_in_memory_through_deaths_anywhere(seed: int, tmp_path: Path, deadly: Deadly) -> None:
    """Four lives of some twelve chunks each, which end in the midst of a write; also back to the state before the last.

    Going back is killed in its midst as well.
    """
    draw = random.Random(seed)
    pair = Pair(tmp_path / "clients", draw)
    for _ in range(4):
        deadly.left = draw.choice([None, draw.randrange(12_000)])
        try:
            for _ in range(draw.randrange(1, 14)):
                draw.choices([pair.train, pair.fill, pair.save], [6, 1, 2])[0]()
            pair.assert_equal()
        except Killed:
            pass
        pair.disk.close()
        back = draw.choice([0, 0, 1])
        deadly.left = draw.choice([None, draw.randrange(2_000)])
        try:
            pair.go_on(back)
        except Killed:
            back = 0  # states are renamed before the rows go back
            deadly.left = None
            pair.go_on(back)
        deadly.left = None
        pair.assert_equal()
    pair.disk.close()


def saved_by(store: DiskStore, rows: ClientRows) -> SavedClients:
    """Change these rows and return the state."""
    for values in store.fetch(rows).values():
        values.fill_(1)
    store.store(rows)
    saved = store.save()
    return SavedClients({name: value.clone() for name, value in saved.rows.items()}, saved.shared, saved.about)


def test_what_is_written(tmp_path: Path) -> None:
    """Rows of the clients that trained; a row in files of holes; images of no row that was not there at the save."""
    many = range(10**7)
    store = on_disk(tmp_path / "clients", many)
    saved_by(store, torch.tensor([10**7 - 1, 5]))
    assert not list(tmp_path.rglob("*.journal")), "before the first state there is nothing to go back to"
    saved_by(store, torch.tensor([10**6, 5]))
    store.close()
    blocks = {path.suffix: path.stat().st_blocks * 512 for path in (tmp_path / "clients").iterdir()}
    assert blocks[".rows"] <= 3 * 4096
    (journal,) = tmp_path.rglob("*.journal")
    records = list(row_journal._records(journal))
    assert len(records) == len(START) - 1 and all(numbers.tolist() == [5] for _, numbers, _ in records)
    content = bytearray(journal.read_bytes())
    content[-1] ^= 1  # as where the power failed: a record of the right length that is not what was written
    journal.write_bytes(content)
    assert len(list(row_journal._records(journal))) == len(records) - 1


def test_files_of_another_run_and_files_that_are_gone(tmp_path: Path) -> None:
    store, other = on_disk(tmp_path / "one"), on_disk(tmp_path / "two")
    saved, _ = saved_by(store, CLIENTS[:5]), saved_by(other, CLIENTS[:5])
    store.close(), other.close()
    assert saved.about is not None
    for folder in (tmp_path / "two", tmp_path / "three"):
        with pytest.raises(UsageError, match=f"--continue: {folder}, which holds the clients' state, is"):
            go_back(folder, saved.about)
    (tmp_path / "one" / "0.momentum.rows").write_bytes(b"")
    go_back(tmp_path / "one", saved.about)
    with pytest.raises(UsageError, match=r"momentum\.rows ends before client 7; --overwrite 1"):
        on_disk(tmp_path / "one").restore(saved)
    (tmp_path / "one" / IDENTITY_NAME).write_text("[]")
    with pytest.raises(UsageError, match="is not this run's"):
        go_back(tmp_path / "one", saved.about)


def test_blocks_of_several_processes_go_to_any_number(tmp_path: Path, deadly: Deadly) -> None:
    """Two processes' journals take the files back, and three go on with their rows."""
    folder: Any = tmp_path / "clients"
    stores = [DiskStore(block, START, CHUNK, CPU, folder=folder, rank=rank) for rank, block in enumerate(
        (range(6), range(6, 11))
    )]  # fmt: skip
    states = [saved_by(store, store.clients[:4]) for store in stores]
    for store in stores:
        for values in store.fetch(store.clients[1:5]).values():
            values.fill_(3)
        store.store(store.clients[1:5])
        store.close()
    assert states[0].about is not None
    go_back(folder, states[0].about)
    status = {name: torch.cat([state.rows[name] for state in states]) for name in states[0].rows}
    for rank, block in enumerate((range(4), range(4, 8), range(8, 11))):
        store = DiskStore(block, START, CHUNK, CPU, folder=folder, rank=rank)
        part = {name: rows[block.start : block.stop] for name, rows in status.items()}
        store.restore(SavedClients(part, states[0].shared, states[0].about))
        trained = torch.tensor([client in (0, 1, 2, 3, 6, 7, 8, 9) for client in block])
        for name, rows in store.rows(block).items():
            assert torch.equal(rows[trained], torch.ones_like(rows[trained])), name
            assert torch.equal(rows[~trained], START[name].expand_as(rows[~trained])), name
        store.close()
