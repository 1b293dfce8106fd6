"""Signatures found on real peers' disks, in blocks, logs and guards: nobody honest signed twice. Blocking.

Everything is checked against the key that it names, whatever the peer that kept it thought of it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from nsllm import canonical
from nsllm.consensus.batch import Excerpt
from nsllm.consensus.certificate import Certificate
from nsllm.consensus.errors import ConsensusError
from nsllm.consensus.guard import SIGN_STEPS, Signed
from nsllm.consensus.guard_file import MAX_RECORD_BYTES, GuardFile
from nsllm.consensus.header import precommit_digest
from nsllm.consensus.inputs import CertificateReceived, ProposalReceived, VoteReceived, decode_input
from nsllm.consensus.vote import Proposal, Vote, check_signature
from nsllm.consensus.wal import WriteAheadLog
from nsllm.errors import PeerFault
from nsllm.ids import Address, Digest, NetworkId, hex0x, short
from nsllm.node.agreement import CONSENSUS_FOLDER
from nsllm.simulations.errors import InvariantError
from nsllm.simulations.signed_batches import SignedBatches

GUARD_FILE: Final = "guard"
WAL_FILE: Final = "wal"

Place = tuple[int, int, int]
"""(height, round, step), the order in which one validator signs; see `SIGN_STEPS`."""


class Signatures:
    """What each validator of a network signed, by where it was found."""

    def __init__(self, network: NetworkId, byzantine: frozenset[Address] = frozenset()) -> None:
        """Nothing was found yet.

        Args:
            network: salt of every signature.
            byzantine: validators that may have signed twice.
        """
        self._network = network
        self._byzantine = byzantine
        self._signed: dict[tuple[Address, Place], tuple[Digest, str]] = {}
        self._highest: dict[Address, tuple[Place, str]] = {}
        self._batches = SignedBatches(network, byzantine)
        self._liars: set[Address] = set()

    def __len__(self) -> int:
        """Different signatures found."""
        return len(self._signed) + len(self._batches)

    @property
    def liars(self) -> set[Address]:
        """Byzantine validators that did sign twice."""
        return self._liars | self._batches.liars

    def add_batches(self, batches: Sequence[Excerpt], where: str) -> None:
        """Batches of observations that stand in a block.

        Raises:
            InvariantError: see `SignedBatches.add`.
        """
        self._batches.add((excerpt.signed for excerpt in batches), where)

    def add_certificate(self, certificate: Certificate, where: str) -> None:
        """A quorum's precommits, whose signatures the caller has checked.

        Raises:
            InvariantError: somebody honest signed something else in the same place.
        """
        header, round_ = certificate.header, certificate.round
        digest = precommit_digest(self._network, header.epoch, header.height, round_, header.id())
        place = (int(header.height), int(round_), SIGN_STEPS["precommit"])
        for precommit in certificate.precommits:
            self._note(precommit.validator, place, digest, where)

    def add_left(self, folder: Path, validator: Address) -> None:
        """What a peer that does not run left behind: its guard, its batches, and the log of the height that it was at.

        Args:
            folder: its data folder.
            validator: its address.

        Raises:
            InvariantError: the guard or a log is damaged or another's, holds what nobody signed, or somebody honest
                signed twice.
        """
        home, where = folder / CONSENSUS_FOLDER, folder.name
        self._batches.add_left(home, validator, f"the batches of {where}")
        try:
            for message in self._logged(home / WAL_FILE):
                check_signature(message, self._network)
                self._note_message(message, f"the log of {where}")
            last = _last_signed(home / GUARD_FILE)
        except (ConsensusError, PeerFault) as error:
            raise InvariantError(f"{where}: {error.message}") from None
        if last is None:
            return
        if (last.network, last.validator) != (self._network, validator):
            raise InvariantError(f"the guard of {where} is that of {hex0x(last.validator)}")
        self._note(validator, last.place(), last.digest, f"the guard of {where}")

    def check_guard(self, folder: Path, validator: Address) -> None:
        """Pass silently if the guard knows of the last thing that its validator signed, or of something later.

        Raises:
            InvariantError: it forgot.
        """
        highest = self._highest.get(validator)
        if highest is None:
            return
        try:
            last = _last_signed(folder / CONSENSUS_FOLDER / GUARD_FILE)
        except ConsensusError as error:
            raise InvariantError(f"{folder.name}: {error.message}") from None
        known = (0, 0, 0) if last is None else last.place()
        if known < highest[0]:
            raise InvariantError(f"the guard of {folder.name} knows {known}, {highest[1]} holds {highest[0]} of it")

    def _logged(self, wal: Path) -> Iterator[Vote | Proposal]:
        """Votes and proposals in a write-ahead log, which is read from a copy: opening one cuts its torn tail off."""
        if not wal.exists():
            return
        with tempfile.TemporaryDirectory(prefix="nsllm-wal-") as folder:
            log = WriteAheadLog(Path(shutil.copy(wal, folder)))
            entries = log.recovered[1:]  # the first says whose it is
            log.close()
        for entry in entries:
            match decode_input(entry):
                case VoteReceived(vote=vote):
                    yield vote
                case ProposalReceived(proposal=proposal):
                    yield proposal
                    yield from proposal.polka
                case CertificateReceived(votes=votes):
                    yield from votes
                case _:
                    pass

    def _note_message(self, message: Vote | Proposal, where: str) -> None:
        validator, step = (
            (message.validator, message.kind) if isinstance(message, Vote) else (message.proposer, "proposal")
        )
        place = (int(message.height), int(message.round), SIGN_STEPS[step])
        self._note(validator, place, message.digest(self._network), where)

    def _note(self, validator: Address, place: Place, digest: Digest, where: str) -> None:
        known, before = self._signed.setdefault((validator, place), (digest, where))
        if known != digest:
            if validator not in self._byzantine:
                raise InvariantError(
                    f"{hex0x(validator)} signed {short(known)} in {before} and {short(digest)} in {where},"
                    f" both at {place}"
                )
            self._liars.add(validator)
        if validator not in self._highest or self._highest[validator][0] < place:
            self._highest[validator] = (place, where)


def _last_signed(guard: Path) -> Signed | None:
    """What a guard's file holds; None before the first signature.

    Raises:
        GuardError: it is damaged.
    """
    record = GuardFile(guard).record
    return None if record is None else canonical.decode(record, Signed, limit_bytes=MAX_RECORD_BYTES)
