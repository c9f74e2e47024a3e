"""Files of the training and the test split, from --data-pth, --train-pth and --val-pth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastlocal.common.errors import UsageError
from fastlocal.data.datasets import DatasetSpec


def split_files(request: DatasetSpec, suffixes: Sequence[str]) -> list[tuple[str, Path]]:
    """Return flag with path, and path, of the training and the test file.

    In a folder --data-pth, the training file is the one whose name holds "train", the test file the one with "test".
    --data-pth may also be the training file.

    Args:
        request: The request.
        suffixes: Suffixes of files.

    Raises:
        UsageError: A file is missing, or several fit; the message says what to give.
    """
    found = []
    for split, flag, own in (("train", "--train-pth", request.train_pth), ("test", "--val-pth", request.val_pth)):
        if own is not None:
            path = Path(own).expanduser()
            origin = f"{flag} {path}"
        else:
            path = _in_folder(request, split, flag, suffixes)
            origin = f"--data-pth {path}"
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "does not exist"
            raise UsageError(f"{origin}: {problem}; --dataset {request.name} takes a {' or '.join(suffixes)} file")
        found.append((origin, path))
    return found


def _in_folder(request: DatasetSpec, split: str, flag: str, suffixes: Sequence[str]) -> Path:
    what = f"{request.name} file"
    if request.data_pth is None:
        raise UsageError(f"{flag}: give the {split} {what}, or --data-pth, a folder with train and test files")
    root = Path(request.data_pth).expanduser()
    if not root.is_dir():
        if split == "train":
            return root
        raise UsageError(f"--data-pth {root}: is the training file; give the test file as --val-pth")
    fitting = sorted(path for path in root.iterdir() if path.suffix in suffixes and split in path.stem)
    if len(fitting) != 1:
        names = ", ".join(path.name for path in fitting[:3]) or f"no *{split}*{suffixes[0]}"
        raise UsageError(f"--data-pth {root}: has {names}; give one as {flag}")
    return fitting[0]
