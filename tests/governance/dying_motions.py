"""A ledger that kills itself (SIGKILL) at a named SQL statement while motions come in, is opened again, and so on.

    ../lives.py dying_motions.py FOLDER STATEMENT LIVES

Each life moves something and approves it, again and again, and writes a line to FOLDER/tap for each approval that was
acknowledged. It dies at the third statement that begins with STATEMENT; the last life only says what waits.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import trio
from ledgers import LedgerNetwork
from trio.testing import MockClock

from nsllm.governance.motion import GovernanceTransaction, Motion, Suspend, approve
from nsllm.ids import TimeMs

MOTIONS = 2
"""In a life."""
FATAL = 3


async def live(folder: Path, statement: str, number: int) -> None:
    """One life; ends by SIGKILL if there is a statement to die at."""
    net = LedgerNetwork(4)
    ledger = await net.open(folder / "ledger.sqlite")
    seen = 0

    def die(sql: str) -> None:
        nonlocal seen
        seen += sql.startswith(statement)
        if seen == FATAL:
            os.kill(os.getpid(), signal.SIGKILL)

    if not statement:
        report(folder / "waiting", ledger.motions(), net.network)
        return
    ledger._state._database.connection.set_trace_callback(die)
    for count in range(MOTIONS):
        now = net.clock.now_ms()
        proposer = net.keys[number % 4]
        action = Suspend(address=net.keys[3].address)
        motion = Motion(
            action=action,
            proposer=proposer.address,
            created_ms=TimeMs(now - MOTIONS * number - count - 1),
            expires_ms=now + 60_000,
        )
        for key in (proposer, net.keys[(number + 1) % 4]):
            transaction = GovernanceTransaction(motion=motion, approvals=(approve(key, net.network, motion),))
            assert await ledger.add_motion(transaction)
            report(folder / "tap", [transaction], net.network)


def report(path: Path, transactions, network) -> None:
    """One line an approval; a line that was written outlives the process."""
    with path.open("a") as file:
        for transaction in transactions:
            for approval in transaction.approvals:
                file.write(f"{transaction.motion.digest(network).hex()} {approval.validator.hex()}\n")


def life(folder: Path, statement: str, number: int) -> None:
    """One life, from its beginning to its end."""
    trio.run(live, folder, statement, number, clock=MockClock(autojump_threshold=0))
