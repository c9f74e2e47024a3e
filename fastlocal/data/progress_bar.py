"""Progress of reading or writing many images, on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastlocal.common.standard_streams import is_terminal, say

_PLAIN_LINES = 4


@contextlib.contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Yield a function that adds a number of finished images: a bar on a terminal, else four lines in all.

    Args:
        title: Title of the bar.
        total: Number of images.
        done: Images finished before.
    """
    console = Console(stderr=True)
    if is_terminal(sys.stderr) and console.is_terminal:
        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=total, completed=done)
            yield lambda count: progress.advance(task, count)
        return

    def advance(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if before * _PLAIN_LINES // total < done * _PLAIN_LINES // total:
            say(f"{title}: {done} of {total}")

    yield advance
