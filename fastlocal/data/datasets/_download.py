"""Downloads with a timeout and one-line errors."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Iterator
from pathlib import Path

from fastlocal.common.errors import UsageError

_SILENCE_S = 30.0


@contextlib.contextmanager
def guard_download(title: str, root: Path, expected: str) -> Iterator[None]:
    """Guard a torchvision download into `root`: a failure becomes a UsageError that names --data-pth.

    A server that is silent for 30 s counts as failed; urllib alone waits forever. A new `root` that stays empty is
    removed again.

    Args:
        title: Name of the data set.
        root: Target folder.
        expected: Files to provide for a run without a network.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE_S)
    is_new = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError, http.client.HTTPException, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"--data-pth {root}: {title} is not there and could not be downloaded ({reason}); expected are {expected}"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
        if is_new:
            with contextlib.suppress(OSError):
                root.rmdir()
