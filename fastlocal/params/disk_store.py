"""Clients' state in files of the run directory, for a population whose state is larger than memory."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.atomic_file import write_atomically
from ..common.errors import UsageError
from .client_stack import ClientRows, ClientStore, SavedClients
from .row_files import Bytes, RowFiles
from .row_journal import RowJournal, undo

FOLDER_NAME = "clients"
"""Folder of a run directory with the rows of its clients and their journals."""
IDENTITY_NAME = "store.json"
"""File that tells the store from those of other runs, with the bytes of a row of each file."""
START, OVERWRITTEN, OWN = 0, 1, 2
"""Status of a row: nothing is in its file; what is there does not count, but may for an earlier state; it counts."""
IMAGE_BYTES = 16 * 2**20
"""Bytes of before-images that are read at once."""


@dataclass(frozen=True)
class _Ahead:
    """Rows that are read for the next chunk.

    Attributes:
        clients: Clients of the chunk.
        places: Places in the chunk of the clients that train in the chunk before it, int64.
        sources: Their places in that chunk, int64.
        read: Ends when the rows of the others are read.
    """

    clients: Tensor
    places: Tensor
    sources: Tensor
    read: Future[None]


class DiskStore(ClientStore):
    """A ClientStore with its rows in files, of which a round reads and writes those of its clients.

    Rows that were never written have the start value. A thread reads the rows of the next chunk and writes those of the
    last one while a chunk trains; three chunks of rows are in memory. The thread does one thing after the other, so
    that what is read is what was written before.
    """

    def __init__(
        self,
        clients: range,
        start: Mapping[str, Tensor],
        chunk: int,
        device: torch.device,
        *,
        folder: Path,
        rank: int,
    ) -> None:
        """Give every client the same start values; writes nothing.

        Args:
            clients: Numbers of the process's clients.
            start: {name: start value of one client}.
            chunk: Clients resident at once.
            device: Device of the training.
            folder: Folder of the files.
            rank: Rank of the process.
        """
        self.clients, self._rank = clients, rank
        self._start = {name: value.detach().cpu().clone() for name, value in start.items()}
        self._files = RowFiles(folder, {name: value.nbytes for name, value in start.items()})
        self._status = {name: torch.full((len(clients),), START, dtype=torch.uint8) for name in start}
        self._journal = RowJournal(folder, rank)
        self._wanted = {name: torch.zeros(len(clients), dtype=torch.bool) for name in start}
        self._identity: str | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._ahead: _Ahead | None = None
        self._writing: Future[None] | None = None
        self._error: BaseException | None = None
        self._fetched: dict[str, Tensor] = {}
        self._fetched_ids = torch.empty(0, dtype=torch.int64)

        def rows(pinned: bool, device: torch.device) -> dict[str, Tensor]:
            return {
                name: torch.empty((chunk, *value.shape), dtype=value.dtype, device=device, pin_memory=pinned)
                for name, value in start.items()
            }

        pinned, host = device.type == "cuda", torch.device("cpu")
        self.resident = rows(False, device)
        self._before, self._after = rows(pinned, host), rows(pinned, host)

    @property
    def names(self) -> Collection[str]:
        return self._start.keys()

    def fetch(self, clients: ClientRows) -> dict[str, Tensor]:
        ids, ahead = _ids(clients), self._ahead
        self._ahead = None
        if ahead is None or not torch.equal(ahead.clients, ids):
            nowhere = torch.empty(0, dtype=torch.int64)
            everywhere = torch.arange(len(ids))
            ahead = _Ahead(ids, nowhere, nowhere, self._submit(lambda: self._read(ids, everywhere, self._before)))
        ahead.read.result()
        self._fetched_ids = ids
        for name, rows in self._before.items():
            rows[ahead.places] = self._after[name][ahead.sources]
            self.resident[name][: len(ids)].copy_(rows[: len(ids)])
        self._fetched = {name: rows[: len(ids)] for name, rows in self.resident.items()}
        return dict(self._fetched)

    def read_ahead(self, upcoming: Callable[[], ClientRows | None]) -> None:
        clients = upcoming()
        if clients is None:
            return
        ids = _ids(clients)
        sources = _places_in(self._fetched_ids, ids)
        others = (sources < 0).nonzero()[:, 0]
        trained = (sources >= 0).nonzero()[:, 0]
        read = self._submit(lambda: self._read(ids[others], others, self._before))
        self._ahead = _Ahead(ids, trained, sources[trained], read)

    def store(self, clients: ClientRows) -> None:
        ids = _ids(clients)
        if self._writing is not None:
            self._writing.result()
        for name, rows in self._fetched.items():
            self._after[name][: len(ids)].copy_(rows)
        self._writing = self._submit(lambda: self._write(ids))

    def rows(self, clients: ClientRows, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return copies of the rows {name: [clients, ...]} of these names, or of all."""
        ids = _ids(clients)
        found = {
            name: torch.empty((len(ids), *self._start[name].shape), dtype=self._start[name].dtype)
            for name in names or self.names
        }
        self._submit(lambda: self._read(ids, torch.arange(len(ids)), found)).result()
        return found

    def fill(self, values: Mapping[str, Tensor]) -> None:
        if values:
            self._flush()
            self._ahead = None
        for name, value in values.items():
            self._start[name].copy_(value)
            self._status[name].clamp_(max=OVERWRITTEN)

    def save(self) -> SavedClients:
        """Begin an epoch; see ClientStore.save."""
        self._flush()
        self._begin(self._journal.epoch + 1)
        about: dict[str, Any] = {"store": self._identify(), "epoch": self._journal.epoch}
        start = {name: value for name, value in self._start.items() if torch.count_nonzero(value)}
        return SavedClients({_status_name(name): rows for name, rows in self._status.items()}, start, about)

    def restore(self, saved: SavedClients) -> None:
        """Restore the clients of a saved state, to whose epoch `go_back` has taken the files.

        Raises:
            UsageError: A file is too short.
        """
        assert saved.about is not None, "the state of a run with other settings"
        self._identity = saved.about["store"]
        for name, status in self._status.items():
            status.copy_(saved.rows[_status_name(name)])
            self._start[name].copy_(saved.shared.get(name, torch.zeros(())))
            written = (status == OWN).nonzero()[:, 0]
            if len(written) and self._start[name].nbytes:
                last = self.clients.start + int(written[-1])
                if self._files.length(name) <= last:
                    path = self._files.folder / self._files.files[name]
                    raise UsageError(f"--continue: {path} ends before client {last}; --overwrite 1 starts afresh")
        self._begin(saved.about["epoch"])

    def sync(self) -> None:
        self._files.sync()

    def close(self) -> None:
        if self._worker is not None:
            self._worker.shutdown()
        self._journal.close()
        self._files.close()

    def _begin(self, epoch: int) -> None:
        """Begin an epoch, in which the first write of each row that is in its file needs a before-image."""
        self._journal.begin(epoch)
        self._wanted = {name: status > START for name, status in self._status.items()}

    def _identify(self) -> str | None:
        """Return what tells this store from others; rank 0's counts."""
        if self._identity is None and self._rank == 0:
            self._identity = uuid.uuid4().hex
            self._files.folder.mkdir(exist_ok=True)
            row_bytes = {self._files.files[name]: size for name, size in self._files.row_bytes.items()}
            text = json.dumps({"store": self._identity, "row_bytes": row_bytes}, indent=2) + "\n"
            write_atomically(self._files.folder / IDENTITY_NAME, lambda file: file.write(text.encode()))
        return self._identity

    def _submit(self, job: Callable[[], None]) -> Future[None]:
        """Let the thread do a job after those before it; after an error all jobs end by it."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "client store")
        return self._worker.submit(self._do, job)

    def _do(self, job: Callable[[], None]) -> None:
        if self._error is not None:
            raise self._error
        try:
            job()
        except BaseException as error:
            self._error = error
            raise

    def _flush(self) -> None:
        """Wait until nothing is being read or written."""
        self._submit(lambda: None).result()

    def _read(self, ids: Tensor, places: Tensor, into: Mapping[str, Tensor]) -> None:
        """Read the rows of clients to these places, int64, of {name: [rows, ...]}."""
        own = ids - self.clients.start
        for name, rows in into.items():
            in_file = self._status[name][own] == OWN
            rows[places[~in_file]] = self._start[name]
            self._files.read(name, ids[in_file].numpy(), _bytes(rows), places[in_file].numpy())

    def _write(self, ids: Tensor) -> None:
        """Write the rows of clients, after their before-images."""
        own = ids - self.clients.start
        for name in self._start:
            self._append_images(name, ids[self._wanted[name][own]])
        self._journal.sync()
        for name, rows in self._after.items():
            self._wanted[name][own] = False
            self._files.write(name, ids.numpy(), _bytes(rows))
            self._status[name][own] = OWN

    def _append_images(self, name: str, ids: Tensor) -> None:
        value = self._start[name]
        if not len(ids) or not value.nbytes:
            return
        for some in ids.sort().values.split(max(1, IMAGE_BYTES // value.nbytes)):
            images = _bytes(torch.empty((len(some), *value.shape), dtype=value.dtype))
            self._files.read(name, some.numpy(), images, torch.arange(len(some)).numpy())
            self._journal.append(self._files.files[name], some.numpy(), images)


def go_back(folder: Path, about: Mapping[str, Any]) -> None:
    """Take the files of a run's clients back to a saved state.

    Args:
        folder: Folder of the files.
        about: `SavedClients.about` of the state.

    Raises:
        UsageError: The files are not those of the run.
    """
    try:
        identity = json.loads((folder / IDENTITY_NAME).read_text())["store"]
    except (OSError, ValueError, KeyError, TypeError):
        identity = None
    if identity != about["store"]:
        found = "is not this run's" if folder.is_dir() else "is missing"
        raise UsageError(
            f"--continue: {folder}, which holds the clients' state, {found}; bring it back, or --overwrite 1 starts "
            "afresh"
        )
    undo(folder, about["epoch"])


def _status_name(name: str) -> str:
    return f"status of {name}"


def _ids(clients: ClientRows) -> Tensor:
    return clients if isinstance(clients, Tensor) else torch.arange(clients.start, clients.stop)


def _places_in(some: Tensor, ids: Tensor) -> Tensor:
    """Return the place of each of `ids` in `some`, int64, -1 for those that are not there."""
    if not len(some):
        return torch.full_like(ids, -1)
    order = some.argsort()
    near = order[torch.searchsorted(some[order], ids).clamp_(max=len(some) - 1)]
    return torch.where(some[near] == ids, near, -1)


def _bytes(rows: Tensor) -> Bytes:
    """View rows on the CPU, without gaps, as bytes [rows, bytes of a row]."""
    data: Bytes = rows.reshape(len(rows), rows[0].numel() if len(rows) else 0).view(torch.uint8).numpy()
    return data
