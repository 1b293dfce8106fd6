"""The inbox: bounded queues, one a sender, emptied in turn, so that a loud sender costs itself and nobody else."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from nsllm.consensus.message import MAX_MESSAGE_BYTES
from nsllm.ids import Address

MAX_QUEUED: Final = 128
"""Messages of one sender that wait; older ones are dropped, the sender's resends repair that."""
MAX_QUEUED_BYTES: Final = 4 * MAX_MESSAGE_BYTES


class Inbox:
    """Raw messages by sender.

    Args:
        senders: who may send; everybody else's messages are dropped unread.
    """

    def __init__(self, senders: Iterable[Address]) -> None:
        self._queues: dict[Address, deque[bytes]] = {sender: deque() for sender in sorted(senders)}
        self._bytes = dict.fromkeys(self._queues, 0)
        self._turns = deque(self._queues)
        self._size = 0

    def admit_only(self, senders: Iterable[Address]) -> None:
        """Other validators are in force: their messages are taken from now on, those of former ones are dropped."""
        chosen = sorted(senders)
        self._queues = {sender: self._queues.get(sender, deque()) for sender in chosen}
        self._bytes = {sender: self._bytes.get(sender, 0) for sender in chosen}
        self._turns = deque(chosen)
        self._size = sum(map(len, self._queues.values()))

    def __len__(self) -> int:
        """Messages waiting."""
        return self._size

    def put(self, sender: Address, message: bytes) -> bool:
        """Queue a message; False if it is dropped unread."""
        queue = self._queues.get(sender)
        if queue is None or len(message) > MAX_MESSAGE_BYTES:
            return False
        queue.append(message)
        self._size += 1
        self._bytes[sender] += len(message)
        while len(queue) > MAX_QUEUED or self._bytes[sender] > MAX_QUEUED_BYTES:
            self._bytes[sender] -= len(queue.popleft())
            self._size -= 1
        return True

    def take(self) -> tuple[Address, bytes] | None:
        """The next message, senders in turn; None if none waits."""
        for _ in range(len(self._turns) if self._size else 0):
            sender = self._turns[0]
            self._turns.rotate(-1)
            queue = self._queues[sender]
            if queue:
                message = queue.popleft()
                self._size -= 1
                self._bytes[sender] -= len(message)
                return sender, message
        return None
