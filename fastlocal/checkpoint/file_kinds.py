"""What a file is that was given for a checkpoint and is none, told by how it begins."""

from __future__ import annotations

from pathlib import Path

from .state_file import FAMILY

HEADS = {
    FAMILY: "is the saved state of a run, with which --continue goes on; the model is latest.pt beside it",
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
"""By the first bytes, of text in lower case."""
MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
"""What torch.save's own pickles begin with, from before it wrote zip archives."""
BEGINNING = 64
"""Bytes that tell."""
NAMES = ("latest.pt", "model.safetensors", "pytorch_model.bin")
"""The files of a folder that are likely to be meant, likeliest first."""
PATTERNS = ("*.pt", "*.pth", "*.safetensors", "*.bin", "*.ckpt")


def what_it_is(path: Path) -> str | None:
    """What to say of a file that is no checkpoint; None where its first bytes tell nothing."""
    with path.open("rb") as file:
        head = file.read(BEGINNING)
    if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5" and len(head) > 14 and MAGIC not in head:
        return "is a pickle that torch.save did not write, and no checkpoint"
    return next(
        (said for start, said in HEADS.items() if start in (head[: len(start)], head[: len(start)].lower())), None
    )


def in_folder(path: Path) -> str | None:
    """The file in a folder that is likely to be meant, or None."""
    found = [entry.name for pattern in PATTERNS for entry in sorted(path.glob(pattern)) if not _is_state(entry)]
    return next((name for name in NAMES if name in found), found[0] if found else None)


def _is_state(path: Path) -> bool:
    return path.name.startswith("resume.") or not path.is_file()
