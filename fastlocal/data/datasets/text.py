"""Text files, each a client: samples are windows of bytes, whose targets are the next bytes."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import DatasetSpec
from fastlocal.data.partition.natural import natural
from fastlocal.data.types import DataSet, Image, Split

VOCABULARY = 256
"""Tokens are bytes: any file has them, in any encoding, and no vocabulary belongs to a model."""
TEST_SHARE = 10
"""One in this many windows of a file, from its end, is for tests if there is no test folder."""


@dataclass(frozen=True)
class Windows:
    """The whole windows of the files of a folder.

    Attributes:
        names: Relative path of each file that has one, sorted.
        tokens: uint8 [n, window] of each of these files.
        short: Number of files without a whole window.
        digest: SHA-256 of all files and their names, its first 16 digits.
    """

    names: tuple[str, ...]
    tokens: tuple[Image, ...]
    short: int
    digest: str


def read(request: DatasetSpec) -> DataSet:
    """Read the files of --data-pth; without it the modules of Python's own standard library.

    A file is cut into windows of context + 1 bytes that do not overlap: the first `context` are the input, and the
    target of each place is the byte after it. What is left at the end is dropped. Of w windows of a file the last
    w // TEST_SHARE are for tests; with --val-pth all are for training, and those of its files for tests.

    Raises:
        UsageError: A folder does not exist or has no file that is long enough; the message names its flag.
    """
    if request.context < 1:
        raise UsageError(f"--context {request.context}: must be at least 1")
    if request.train_pth is not None:
        raise UsageError(f"--train-pth {request.train_pth}: text is in --data-pth, and of tests in --val-pth")
    train = _read_folder(request, "--data-pth", request.data_pth)
    own = replace(train, tokens=tuple(part[: len(part) - len(part) // TEST_SHARE] for part in train.tokens))
    test = [part[len(part) - len(part) // TEST_SHARE :] for part in train.tokens]
    if request.val_pth is not None:
        own, test = train, list(_read_folder(request, "--val-pth", request.val_pth).tokens)
    elif not any(map(len, test)):
        raise UsageError(
            f"--data-pth {request.data_pth}: no file has {TEST_SHARE} windows of {request.context + 1} bytes, of which "
            "one would be for tests; give longer files, a smaller --context, or a test folder as --val-pth"
        )
    owners = np.repeat(np.array(own.names), [len(part) for part in own.tokens])
    clients = natural(owners)
    return DataSet(
        name=request.name,
        train=_split(own.tokens),
        test=_split(test),
        classes=VOCABULARY,
        mean=None,
        std=None,
        natural=replace(clients, meta={**clients.meta, "digest": train.digest}),
    )


def _read_folder(request: DatasetSpec, flag: str, path: str | None) -> Windows:
    """Read a folder, or the standard library, and say what was found."""
    folder = Path(sysconfig.get_paths()["stdlib"] if path is None else path).expanduser()
    origin = f"--dataset text: {folder}" if path is None else f"{flag} {folder}"
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise UsageError(f"{origin} {problem}; give a folder of text files, each of which is a client")
    files = sorted(_files(folder) if path is not None else (file.name for file in folder.glob("*.py")))
    if not files:
        raise UsageError(f"{origin}: has no files; each text file in it is a client")
    window, digest = request.context + 1, hashlib.sha256()
    names, tokens, size, longest = [], [], 0, 0
    for name in files:
        data = (folder / name).read_bytes()
        digest.update(f"{name}\0{len(data)}\0".encode(errors="surrogateescape") + data)
        size, longest = size + len(data), max(longest, len(data))
        count = len(data) // window
        if count:
            names.append(name)
            tokens.append(np.frombuffer(data, np.uint8, count * window).reshape(count, window))
    if not names:
        raise UsageError(
            f"{origin}: no file has the {window} bytes of a window of --context {request.context}; the longest of "
            f"{len(files)} has {longest}"
        )
    found = Windows(tuple(names), tuple(tokens), len(files) - len(names), digest.hexdigest()[:16])
    request.message(
        f"text: {len(names)} files of {folder} with {sum(map(len, tokens)):,} windows of {window} bytes, sha256 "
        f"{found.digest}" + (f"; {found.short} shorter files left out" if found.short else "")
    )
    return found


def _files(folder: Path) -> Iterator[str]:
    """Yield the relative paths of all files below a folder, except hidden ones."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and (Path(place) / name).is_file():
                yield (Path(place) / name).relative_to(folder).as_posix()


def _split(parts: list[Image] | tuple[Image, ...]) -> Split:
    """Return the windows of all files as inputs and targets, views of one tensor."""
    tokens = torch.from_numpy(np.concatenate(list(parts)))
    return Split(tokens[:, :-1], tokens[:, 1:], tokens=True)
