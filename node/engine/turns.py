"""Fairness between clients: lines that are served in turns, and a budget that is shared."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """What waits, in one line a client. The clients are served in turns, each line in the order it came.

    >>> turns = Turns[str]()
    >>> for client, item in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")]:
    ...     turns.add(client, item)
    >>> [turns.take() for _ in range(len(turns))]
    ['a1', 'b1', 'a2', 'a3']
    """

    def __init__(self) -> None:
        self._lines: dict[str, deque[T]] = {}
        """No line is empty; the first is served next."""
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        """Everything that waits, line by line."""
        return (item for line in self._lines.values() for item in line)

    def add(self, client: str, item: T) -> None:
        """To the end of the client's line."""
        self._lines.setdefault(client, deque()).append(item)
        self._size += 1

    def first(self) -> T:
        """What `take` gives next. Raises `IndexError` if nothing waits."""
        for line in self._lines.values():
            return line[0]
        raise IndexError("nobody waits")

    def take(self) -> T:
        """Remove and return the next; then it is another client's turn. Raises `IndexError` if nothing waits."""
        item = self.first()
        client = next(iter(self._lines))
        line = self._lines.pop(client)
        line.popleft()
        if line:
            self._lines[client] = line
        self._size -= 1
        return item

    def remove(self, client: str, item: T) -> None:
        """Take `item` out of the client's line. Raises `ValueError` if it is not there."""
        line = self._lines.get(client, deque())
        line.remove(item)
        if not line:
            del self._lines[client]
        self._size -= 1

    def line(self, client: str) -> int:
        """How many of a client wait."""
        return len(self._lines.get(client, ()))

    def longest(self) -> str:
        """The client with most that wait, the one to be served last among equals. Raises `ValueError` if none waits."""
        return max(reversed(self._lines), key=self.line)

    def last(self, client: str) -> T:
        """The end of a client's line."""
        return self._lines[client][-1]


def shared(budget: int, wants: Sequence[tuple[str, int]], least: int) -> list[int]:
    """What each of `wants`, (client, amount) in the order they came, gets of `budget`.

    Clients get equal shares, but `least` each as long as there is anything, those who came first first; what a client
    does not need goes to the others. Within a client, who came first is served first.

    >>> shared(64, [("a", 500), ("a", 500), ("b", 10), ("c", 500)], 16)
    [33, 0, 10, 21]
    """
    totals: dict[str, int] = {}
    for client, want in wants:
        totals[client] = totals.get(client, 0) + want
    share = max(least, budget // max(1, len(totals)))
    rest = budget
    shares: dict[str, int] = {}
    for limit in (share, budget):
        for client, total in totals.items():
            more = min(total, limit, shares.get(client, 0) + rest) - shares.get(client, 0)
            shares[client] = shares.get(client, 0) + more
            rest -= more
    given: list[int] = []
    for client, want in wants:
        given.append(min(want, shares[client]))
        shares[client] -= given[-1]
    return given
