"""Write images and labels in FFCV's .beton format, by FFCV's writer in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastlocal.common.errors import UsageError
from fastlocal.data import install_hints
from fastlocal.data.images.beton import BetonImages
from fastlocal.data.manifest import make_stamp
from fastlocal.data.preparing.ffcv_writer import Job
from fastlocal.data.preparing.split_to_write import SplitToWrite

_START = "import sys; sys.path[:] = sys.argv[2:]; from fastlocal.data.preparing.ffcv_writer import main; main()"

WriteMode = Literal["raw", "jpg", "proportion", "smart"]


@dataclass(frozen=True)
class BetonSettings:
    """Storage of images, in FFCV's terms.

    Attributes:
        write_mode: raw pixels, JPEG, JPEG for a share of the images chosen by index, or (smart) JPEG for large images.
        max_resolution: Pixels that longer sides are scaled down to, or None.
        quality: JPEG quality, 1 to 100.
        jpeg_share: Share of JPEGs under proportion, 0 to 1.
        smart_threshold: Bytes of raw pixels above which smart uses JPEG.
    """

    write_mode: WriteMode
    max_resolution: int | None
    quality: int
    jpeg_share: float
    smart_threshold: int | None = None


class FfcvWriter:
    """Context manager of the process that writes .beton files; the process starts with the first file.

    Args:
        workers: Its own processes that decode and compress.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._errors = tempfile.TemporaryFile()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> FfcvWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.kill()  # its workers end with it
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        self._errors.close()

    def write(self, job: Job, progress: Callable[[int], None]) -> Tensor:
        """Write one file; return the counts of grey levels [3, 256] of its images before scaling and compression."""
        if self._process is None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(job, process.stdin)
            process.stdin.flush()
        for line in process.stdout:
            message: dict[str, Any] = json.loads(line)
            if "failed" in message:
                raise UsageError(f"--format beton: {message['failed']}{self._detail(message['failed'])}")
            if "grey_levels" in message:
                return torch.tensor(message["grey_levels"])
            progress(message["done"])
        ended = f"FFCV's writer ended early (status {process.wait()})"
        raise UsageError(f"--format beton: {ended}; fewer --workers need less memory")

    def _start(self) -> subprocess.Popen[bytes]:
        if importlib.util.find_spec("ffcv") is None:
            raise UsageError(f"--format beton: needs FFCV; {install_hints.FFCV}")
        return subprocess.Popen(
            [sys.executable, "-c", _START, str(os.getpid()), *(path or os.getcwd() for path in sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # the parent handles Ctrl-C
        )

    def _detail(self, failure: str) -> str:
        """Return the rest of the message: an installation hint, or the last line of the process's errors."""
        if "cannot be imported" in failure:
            return f"; {install_hints.FFCV}"
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        return f": {last[0]}" if last and "a process" in failure else ""


def write_beton(
    split: SplitToWrite, folder: Path, settings: BetonSettings, writer: FfcvWriter, progress: Callable[[int], None]
) -> Path:
    """Write NAME.beton and its manifest, and return its path; grey images become RGB, FFCV's only kind.

    The file is renamed when both are complete; an interrupted conversion starts anew.

    Args:
        split: The images and labels.
        folder: Folder of the file.
        settings: Storage of the images.
        writer: The writing process.
        progress: Called with the number of new images.

    Raises:
        UsageError: FFCV is missing or broken, or an image cannot be decoded or stored.
    """
    path = folder / f"{split.name}.beton"
    partial = path.with_name(f"{path.name}.partial")
    job = Job(
        path=str(partial),
        images=split.images,
        labels=split.targets.tolist(),
        write_mode=settings.write_mode,
        max_resolution=settings.max_resolution,
        quality=settings.quality,
        jpeg_share=settings.jpeg_share,
        smart_threshold=settings.smart_threshold,
        workers=writer.workers,
    )
    try:
        counts = writer.write(job, progress)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        images = BetonImages(partial, "--out")
        files = {path.name: make_stamp(partial)}
        one_size = int(images.heights.min()) == int(images.heights.max()) and len(set(images.widths.tolist())) == 1
        manifest = split.manifest("beton", files, counts, (3, *images.size(0)) if one_size else None)
        manifest.write(path)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
