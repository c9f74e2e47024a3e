"""Identify files that are not checkpoints by their first bytes."""

from __future__ import annotations

from pathlib import Path

from .state_file import MAGIC_PREFIX

HEADS = {
    MAGIC_PREFIX: "is the saved state of a run, with which --continue goes on; the model is latest.pt beside it",
    b"version https://git-lfs": "is a pointer of Git LFS and not the file itself: git lfs pull fetches that",
    b"\x1f\x8b": "is compressed with gzip: unpack it",
    b"BZh": "is compressed with bzip2: unpack it",
    b"\xfd7zXZ": "is compressed with xz: unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd: unpack it",
    b"\x89HDF": "is an HDF5 file, as Keras writes",
    b"GGUF": "is a GGUF file",
    b"\x93NUMPY": "is an array of NumPy",
    b"<!doctype html": "is a web page",
    b"<html": "is a web page",
}
"""Description of a file by its first bytes; text in lower case."""
MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
"""First bytes of torch.save's pickles, from before it wrote zip archives."""
HEAD_BYTES = 64
NAMES = ("latest.pt", "model.safetensors", "pytorch_model.bin")
"""Likely checkpoint names in a folder, likeliest first."""
PATTERNS = ("*.pt", "*.pth", "*.safetensors", "*.bin", "*.ckpt")


def identify(path: Path) -> str | None:
    """Describe a file that is not a checkpoint; None if its first bytes are not known."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5" and len(head) > 14 and MAGIC not in head:
        return "is a pickle that torch.save did not write, and no checkpoint"
    return next(
        (text for start, text in HEADS.items() if start in (head[: len(start)], head[: len(start)].lower())), None
    )


def likely_checkpoint(path: Path) -> str | None:
    """Return the name of a folder's likeliest checkpoint, or None."""
    found = [entry.name for pattern in PATTERNS for entry in sorted(path.glob(pattern)) if not _is_state(entry)]
    return next((name for name in NAMES if name in found), found[0] if found else None)


def _is_state(path: Path) -> bool:
    return path.name.startswith("resume.") or not path.is_file()
