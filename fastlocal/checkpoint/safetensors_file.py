"""Reader of safetensors files: a length, an index in JSON, and the tensors."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..common.errors import UsageError

SUFFIX = ".safetensors"
MAX_INDEX_BYTES = 100 * 2**20
"""Limit of the format."""


def is_safetensors(path: Path) -> bool:
    """Return True if a file has the suffix or the first bytes of safetensors."""
    if path.suffix.lower() == SUFFIX:
        return True
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= MAX_INDEX_BYTES


def read_tensors(path: Path, flag: str) -> dict[str, Tensor]:
    """Return the tensors in a file, by name.

    Args:
        path: The file.
        flag: The user's flag, for the message.

    Raises:
        UsageError: The package is not installed, or the file is damaged.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise UsageError(
            f"{flag} {path}: needs the package safetensors ({error}); pip install 'fastlocal[safetensors]'"
        ) from error
    try:
        return dict(safetensors.torch.load_file(path, device="cpu"))
    except Exception as error:  # the package's own errors, OSError, and KeyError for types that torch lacks
        reason = " ".join(str(error).split())
        raise UsageError(f"{flag} {path}: is no whole file of safetensors ({reason}); fetch it anew") from error
