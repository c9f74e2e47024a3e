"""What a download does to those who wait for it: it times out, and fails in one line."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Iterator
from pathlib import Path

from fastlocal.common.errors import UsageError

_SILENCE_S = 30.0


@contextlib.contextmanager
def downloading(title: str, root: Path, expected: str) -> Iterator[None]:
    """Around a torchvision download into `root`: what fails in it is a UsageError naming --data-pth.

    expected: where the files are to lie for a run without a network
    A server that is silent for 30 s counts as failed (urllib alone would wait for ever). A `root` that had to be made
    is removed again where it stayed empty.
    """
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE_S)
    made = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError, http.client.HTTPException, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"--data-pth {root}: {title} is not there and could not be downloaded ({reason}); expected are {expected}"
        ) from None
    finally:
        socket.setdefaulttimeout(patience)
        if made:
            with contextlib.suppress(OSError):
                root.rmdir()
