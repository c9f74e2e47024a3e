"""Images and labels in FFCV's .beton format, written by FFCV's own writer in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch import Tensor

from fastlocal.data.images.beton import BetonImages
from fastlocal.data.manifest import stamp
from fastlocal.data.preparing.ffcv_writer import Job
from fastlocal.data.preparing.half import Half
from fastlocal.errors import UsageError

_START = "import sys; sys.path[:] = sys.argv[1:]; from fastlocal.data.preparing.ffcv_writer import main; main()"
INSTALL = (
    "install it with pip install 'fastlocal[ffcv]', which on Debian needs "
    "apt-get install g++ python3-dev pkg-config libopencv-dev libturbojpeg0-dev"
)

WriteMode = Literal["raw", "jpg", "proportion"]


@dataclass(frozen=True)
class BetonSettings:
    """How images are stored, in FFCV's terms.

    write_mode: raw pixels, JPEG, or JPEG for a share of the images, which their numbers decide, and raw for the others
    max_resolution: longer sides are scaled down to so many pixels; None: sizes stay
    quality: of JPEG, 1 to 100        jpeg_share: of JPEGs under proportion, 0 to 1
    """

    write_mode: WriteMode
    max_resolution: int | None
    quality: int
    jpeg_share: float


def write_beton(
    half: Half, folder: Path, settings: BetonSettings, workers: int, progress: Callable[[int], None]
) -> Path:
    """Writes NAME.beton and its manifest and returns the first; grey images become RGB, as FFCV has no others.

    progress: called with each number of images done
    The file has another name until both are complete, and a writing that was stopped starts again from the beginning.
    Raises UsageError where FFCV is missing or broken, or an image cannot be decoded or stored.
    """
    if importlib.util.find_spec("ffcv") is None:
        raise UsageError(f"--format beton: needs FFCV; {INSTALL}")
    path = folder / f"{half.name}.beton"
    partial = path.with_name(f"{path.name}.partial")
    job = Job(
        path=str(partial),
        images=half.images,
        labels=half.targets.tolist(),
        write_mode=settings.write_mode,
        max_resolution=settings.max_resolution,
        quality=settings.quality,
        jpeg_share=settings.jpeg_share,
        workers=workers,
        parent=os.getpid(),
    )
    try:
        counts = _written(job, progress)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        images = BetonImages(partial, "--out")
        files = {path.name: stamp(partial)}
        one_size = int(images.heights.min()) == int(images.heights.max()) and len(set(images.widths.tolist())) == 1
        manifest = half.manifest("beton", files, counts, (3, *images.size(0)) if one_size else None)
        manifest.write(path)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _written(job: Job, progress: Callable[[int], None]) -> Tensor:
    """Writes the file; the grey levels [3, 256] of its images before they are scaled and compressed."""
    with tempfile.TemporaryFile() as errors, _process(errors) as process:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(job, process.stdin)
            process.stdin.close()
        for line in process.stdout:
            message: dict[str, Any] = json.loads(line)
            if "failed" in message:
                errors.seek(0)
                last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
                hint = f"; {INSTALL}" if "cannot be imported" in message["failed"] else ""
                raise UsageError(f"--format beton: {message['failed']}{''.join(f': {text}' for text in last)}{hint}")
            if "grey_levels" in message:
                return torch.tensor(message["grey_levels"])
            progress(message["done"])
        status = process.wait()
    raise UsageError(f"--format beton: FFCV's writer ended early (status {status}); fewer --workers need less memory")


@contextlib.contextmanager
def _process(errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _START, *(path or os.getcwd() for path in sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        start_new_session=True,  # Ctrl-C is its parent's to handle
    )
    try:
        yield process
    finally:
        process.kill()  # the kernel ends its workers with it
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
