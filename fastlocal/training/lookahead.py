"""An iterator whose next items can be seen before they are taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Lookahead(Generic[T]):
    """Gives the items of `items`; `later` goes on from where it is without taking anything."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._seen: deque[T] = deque()
        self._taken = 0

    def __iter__(self) -> Lookahead[T]:
        return self

    def __next__(self) -> T:
        item = self._seen.popleft() if self._seen else next(self._items)
        self._taken += 1
        return item

    def later(self) -> Iterator[T]:
        """The items after the last one that was taken, as far as they go; those taken meanwhile are passed over."""
        place = self._taken
        while True:
            place = max(place, self._taken)
            while len(self._seen) <= place - self._taken:
                item = next(self._items, None)
                if item is None:
                    return
                self._seen.append(item)
            yield self._seen[place - self._taken]
            place += 1
