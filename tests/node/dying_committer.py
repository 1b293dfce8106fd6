"""A validator's committer that kills itself (SIGKILL) at a named moment, is started again, and so on.

    ../lives.py dying_committer.py FOLDER MOMENT LIVES

Each life observes the same records as every other one, with integers of its own, and dies at MOMENT; the last one goes
on to the end. Everything that is sent stands in FOLDER/tap first, a line each: the canonical message in hex.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import trio
from msgspec.structs import replace

from nsllm.clock import SystemClock
from nsllm.consensus.batch import sign_commit
from nsllm.consensus.observation import Subject
from nsllm.consensus.observation_message import Commit, decode_observation, encode_observation
from nsllm.crypto import keccak256
from nsllm.governance.batch_log import BatchLog
from nsllm.governance.defaults import default_policy
from nsllm.governance.ledger import Ledger
from nsllm.ids import Address, Digest, TimeMs
from nsllm.node import committer as module
from nsllm.node import own_batches
from nsllm.node.committer import Committer
from nsllm.node.context import PeerContext
from nsllm.node.events import EventBus
from nsllm.node.founding import found, founder
from nsllm.node.identity import new_identity
from nsllm.offload import InlineOffload, ThreadOffload

RECORDS = 12


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def live(folder: Path, moment: str, number: int) -> None:
    """One life; ends by SIGKILL if the moment comes."""
    module.RESEND_S = own_batches.RESEND_S = 0.05  # type: ignore[misc]
    rng = random.Random(7)
    me, other = new_identity(rng.randbytes), new_identity(rng.randbytes)
    policy = default_policy(Digest(b"\1" * 32), Digest(b"\2" * 32))
    genesis = found("dying", [founder(me), founder(other)], policy, TimeMs(1_000), local=True)
    clock = SystemClock()
    ledger = await Ledger.open(None, genesis, clock=clock, offload=InlineOffload(), key=me.member)
    context = PeerContext(
        genesis=genesis,
        network_id=genesis.network_id(),
        standing=ledger,
        key=me.member,
        clock=clock,
        offload=ThreadOffload(),
        rng=rng,
        events=EventBus(clock),
    )
    log = BatchLog.open(folder / "batches.sqlite", genesis.network_id(), me.address, now_ms=clock.now_ms())
    if moment == "in_transaction":
        log._connection.set_trace_callback(lambda sql: die() if sql.startswith("INSERT INTO entry") else None)
    tap = os.open(folder / "tap", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def share(to: Address, payload: bytes) -> None:
        """Write it down; the other validator answers every commit with one of its own about the same records."""
        os.write(tap, f"{payload.hex()}\n".encode())
        body = decode_observation(payload)
        if isinstance(body, Commit) and body.signed.commit.records:
            its = replace(body.signed.commit, validator=to, abstentions=())
            answer = Commit(signed=sign_commit(other.member, genesis.network_id(), its))
            nursery.start_soon(hear, encode_observation(answer))

    async def hear(payload: bytes) -> None:
        committer.hear(other.address, payload)

    committer = Committer(
        context=context,
        ledger=ledger,
        batches=log,
        share=share,
        due=lambda: None,
        checkpoint=lambda passed: die() if passed == moment else None,
    )
    size = len(policy.rubric.dimensions)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        for i in range(RECORDS):
            record = Digest(keccak256(b"record %d" % i))
            if i == RECORDS - 1 and number % 2:
                committer.abstained(record, "this time we would rather not")
            else:
                about = Subject(record, Address(other.address), Digest(keccak256(b"key")))
                committer.observed(about, (1_000 * number + i,) * size)
            await trio.sleep(0.02)
        await trio.sleep(0.3)
        nursery.cancel_scope.cancel()


def life(folder: Path, moment: str, number: int) -> None:
    """One life, from its beginning to its end."""
    trio.run(live, folder, moment, number)
