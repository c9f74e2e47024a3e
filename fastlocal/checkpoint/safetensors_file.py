"""Files of safetensors: a length, an index in JSON, and the tensors."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..common.errors import UsageError

SUFFIX = ".safetensors"
LONGEST = 100 * 2**20
"""Bytes of an index, more of which the format does not allow."""


def is_safetensors(path: Path) -> bool:
    """Whether a file is called that, or begins as one."""
    if path.suffix.lower() == SUFFIX:
        return True
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= LONGEST


def read_tensors(path: Path, flag: str) -> dict[str, Tensor]:
    """The tensors in a file, by name.

    Args:
        path: The file.
        flag: What the user set, for the message.

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
