"""Scores of a record of ours that a block settled which this peer never had: the record's holders are asked for them.

What they give is checked as any record from another peer. Log entry and anchor went with the block, so the receipt
stays `certified`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio

from nsllm.cache_dht import placement
from nsllm.consensus.certified import CertifiedRecord, CertifiedScores
from nsllm.errors import NsllmError
from nsllm.ids import short
from nsllm.node.context import PeerContext
from nsllm.node.scope import Scope
from nsllm.record import SignedRecord

log = logging.getLogger(__name__)

ASK_DEADLINE_S: Final = 5.0
"""Nobody waits for the answer."""


async def find_scores(context: PeerContext, scope: Scope, signed: SignedRecord) -> CertifiedScores | None:
    """The verified scores of a record of ours from our own shelf or the first holder that has them; None if none has.

    A holder gives its best record of a request: where another answer to it scored higher, ours is not found there.
    """
    record, key = signed.record.digest(), signed.record.key()

    async def asked(name: str, ask: Callable[[], Awaitable[CertifiedRecord | None]]) -> CertifiedScores | None:
        try:
            with trio.fail_after(ASK_DEADLINE_S):
                found = await ask()
            if found is None or found.signed.record.digest() != record:
                return None
            found.check(context.network_id, context.validators_of(found.certificate))
        except (NsllmError, trio.TooSlowError) as error:
            log.info("scores_not_found record=%s holder=%s error=%s", short(record), name, error)
            return None
        return found.scores

    if (scores := await asked("self", partial(scope.cache.lookup, key, member=True))) is not None:
        return scores
    for holder in await scope.cache.peers_of(placement.key_shard(key, context.genesis.placement.shards)):
        if (scores := await asked(holder, partial(scope.shelves.fetch, holder, key))) is not None:
            return scores
    return None
