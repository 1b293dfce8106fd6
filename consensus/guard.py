"""The signer guard: the only holder of the member key in consensus, and the last word on what it signs.

It remembers the last signed (height, round, step, digest) and the height's lock in a small file of its own, synced to
disk before a signature leaves it. It signs only what comes later in that order, or the identical thing again, and no
prevote that forgets the lock. So a lost or rolled-back write-ahead log, a bug in the core or a second driver over the
same folder cannot make this validator equivocate or break a lock.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta

from nsllm import canonical, crypto
from nsllm.canonical import Value
from nsllm.consensus.block import Block
from nsllm.consensus.errors import GuardError
from nsllm.consensus.evidence import SignedProposal
from nsllm.consensus.guard_file import MAX_RECORD_BYTES, GuardFile
from nsllm.consensus.vote import Choice, Proposal, ProposalBody, Vote, VoteBody, keeps_lock
from nsllm.crypto import MemberKey
from nsllm.errors import EncodingError
from nsllm.ids import (
    Address,
    AddressField,
    Digest,
    DigestField,
    Height,
    HeightField,
    NetworkId,
    NetworkIdField,
    Round,
    RoundField,
    Signature,
    hex0x,
    short,
)

SIGN_STEPS: Final = {"proposal": 1, "prevote": 2, "precommit": 3}
"""Order of what one validator signs within a round."""


class Signed(Value, frozen=True, kw_only=True):
    """The last thing that was signed."""

    network: NetworkIdField
    validator: AddressField
    height: HeightField
    round: RoundField
    step: Annotated[int, Meta(ge=1, le=3)]
    """See `SIGN_STEPS`."""
    digest: DigestField
    lock: Choice | None
    """What was precommitted last at this height; None while only nil was."""

    def place(self) -> tuple[int, int, int]:
        """(height, round, step), the order that only ever rises."""
        return (self.height, self.round, self.step)


class SignerGuard:
    """Signs votes and proposals, never two different ones at one place.

    Args:
        key: the member key; nothing else in consensus holds it.
        network: whose messages these are.
        path: the guard's file; made at the first signature.

    Raises:
        GuardError: the file is damaged, or another key's or network's.
    """

    def __init__(self, key: MemberKey, network: NetworkId, path: Path) -> None:
        self._key = key
        self._network = network
        self._path = path
        self._file = GuardFile(path)
        self._last = self._load()

    @property
    def address(self) -> Address:
        """The validator that signs here."""
        return self._key.address

    @property
    def last(self) -> Signed | None:
        """The last thing signed; None before the first."""
        return self._last

    def has_signed_beyond(self, height: Height, known: frozenset[Digest]) -> bool:
        """Whether the last thing signed is of a greater height, or of this one and not among what is `known` of it."""
        last = self._last
        return last is not None and (last.height > height or (last.height == height and last.digest not in known))

    def learn(self, message: Vote | SignedProposal) -> bool:
        """Take in what was signed here and is told by others; True if it is later than anything remembered.

        Then this file is an old copy, and from now on it knows better. Who abstains at the height loses nothing by what
        is still not known: the guard signs only upward.

        Raises:
            SignatureError: the key here did not sign it.
            OwnFault: the guard's file cannot be written.
        """
        step: str = "proposal"
        digest, lock = message.digest(self._network), self._lock(message.height)
        if isinstance(message, Vote):
            step, lock = message.kind, message.lock or lock
            if message.kind == "precommit" and message.value is not None:
                lock = Choice(round=message.round, value=message.value)
        learnt = self._record(message.height, message.round, step, digest, lock)
        if self._last is not None and learnt.place() <= self._last.place():
            return False
        crypto.verify(digest, message.signature, self.address)
        self._remember(learnt)
        return True

    def vote(self, body: VoteBody) -> Vote:
        """The vote, signed.

        Raises:
            GuardError: it would contradict what was signed before, or it is another validator's.
            OwnFault: the guard's file cannot be written; nothing was signed.
        """
        held = self._lock(body.height)
        if body.kind == "prevote":
            keeps = keeps_lock(body.value, body.lock, body.valid_round)
            self._check_lock(held, body.lock, body.round, keeps=keeps)
        elif body.value is not None:
            held = Choice(round=body.round, value=body.value)
        digest = self._digest_of(body, body.validator)
        return body.signed(self._sign(body.height, body.round, body.kind, digest, held))

    def proposal(self, body: ProposalBody, block: Block, polka: tuple[Vote, ...]) -> Proposal:
        """The proposal of `block`, signed; `polka` proves its valid round.

        Raises:
            GuardError: it would contradict what was signed before, or it is another validator's.
            OwnFault: the guard's file cannot be written; nothing was signed.
        """
        digest = self._digest_of(body, body.proposer)
        signature = self._sign(body.height, body.round, "proposal", digest, self._lock(body.height))
        return body.signed(block, polka, signature)

    def _digest_of(self, body: VoteBody | ProposalBody, signer: Address) -> Digest:
        if signer != self.address:
            raise GuardError(f"refused to sign what {hex0x(signer)} says: the key here is {hex0x(self.address)}'s")
        return body.digest(self._network)

    def _lock(self, height: Height) -> Choice | None:
        return self._last.lock if self._last is not None and self._last.height == height else None

    def _check_lock(self, held: Choice | None, stated: Choice | None, round_: Round, *, keeps: bool) -> None:
        """A prevote states the lock that was signed here, or a later one, and is not against it."""
        known = held is None or held.round >= round_ or (stated is not None and stated.round > held.round)
        if not keeps or not (known or stated == held):
            lock = "none" if held is None else f"{short(held.value)} of round {held.round}"
            raise GuardError(
                f"refused to sign a prevote of round {round_}: it breaks the lock (signed here: {lock})",
                hint="wait for the next height; if this repeats, another process runs with this key",
            )

    def _sign(self, height: Height, round_: Round, step: str, digest: Digest, lock: Choice | None) -> Signature:
        wanted = self._record(height, round_, step, digest, lock)
        last = self._last
        if last is not None and wanted != last and wanted.place() <= last.place():
            raise GuardError(
                f"refused to sign {step} {short(digest)} at height {height} round {round_}: "
                f"last signed was {short(last.digest)} at {last.place()}",
                hint="wait for the next height; if this repeats, another process runs with this key",
            )
        if wanted != last:
            self._remember(wanted)
        return self._key.sign(digest)

    def _record(self, height: Height, round_: Round, step: str, digest: Digest, lock: Choice | None) -> Signed:
        return Signed(
            network=self._network,
            validator=self.address,
            height=height,
            round=round_,
            step=SIGN_STEPS[step],
            digest=digest,
            lock=lock,
        )

    def _remember(self, last: Signed) -> None:
        self._file.write(canonical.encode(last))
        self._last = last

    def _load(self) -> Signed | None:
        record = self._file.record
        if record is None:
            return None
        try:
            last = canonical.decode(record, Signed, limit_bytes=MAX_RECORD_BYTES)
        except EncodingError as error:
            raise GuardError(
                f"{self._path} is damaged: {error}",
                hint="restore it from a backup; without it this key may sign a contradiction",
            ) from None
        if last.network != self._network or last.validator != self.address:
            raise GuardError(
                f"{self._path} belongs to validator {hex0x(last.validator)} of network {hex0x(last.network)[:18]}",
                hint=f"this peer is {hex0x(self.address)} of network {hex0x(self._network)[:18]}",
            )
        return last
