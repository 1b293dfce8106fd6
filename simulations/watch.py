"""What must hold at every event of a simulated network, whatever goes wrong in it.

At each committed block: no other peer has another block at that height (agreement), it stands on the block below, the
peer committed nothing above before, and the certificate holds. At each vote and proposal that an honest validator
sends: it said nothing else in that place, before a restart neither. At each proof of an offence: whom it names is one
that the scenario made Byzantine.
"""

from __future__ import annotations

from nsllm.consensus.evidence import Evidence
from nsllm.consensus.header import Header
from nsllm.consensus.message import Body, Recalled
from nsllm.consensus.vote import Proposal, Vote
from nsllm.errors import PeerFault
from nsllm.ids import Address, Digest, NetworkId, hex0x
from nsllm.node.peer import Peer
from nsllm.node.views import PeerEvent
from nsllm.simulations.errors import InvariantError


class Watch:
    """Looks on; raises where a promise is broken, which ends the run."""

    def __init__(self, network: NetworkId) -> None:
        self._network = network
        self._decided: dict[int, tuple[Digest, int]] = {}
        """Header id at a height, and the peer that committed it first."""
        self._last: dict[int, int] = {}
        """Height that each peer committed last."""
        self._signed: dict[tuple[Address, int, int, str], Digest | None] = {}
        """What an honest validator said at a height, in a round, in a step."""
        self.byzantine: frozenset[Address] = frozenset()
        self.blocks = 0
        """Commits that were looked at."""
        self.signatures = 0
        """Votes and proposals that were looked at."""
        self.accusations = 0
        self.broken: InvariantError | None = None
        """The first promise that did not hold: an event's observer may be called where an error would be taken for
        somebody else's."""

    def event(self, number: int, peer: Peer, event: PeerEvent) -> None:
        """Something happened in a peer.

        Raises:
            InvariantError: agreement broke, a certificate does not hold, or an honest validator is accused.
        """
        try:
            if event.kind == "block":
                self._committed(number, peer)
            elif event.kind == "offence":
                self._accused(number, str(event.fields.get("validator")))
        except InvariantError as error:
            self.broken = self.broken or error
            raise

    def said(self, number: int, signer: Address, message: Body | Evidence | Recalled) -> None:
        """An honest validator is about to send a message of agreement; what it passes on of others is theirs.

        Raises:
            InvariantError: it signed something else in the same place before.
        """
        if isinstance(message, Vote) and message.validator == signer:
            step: str = message.kind
        elif isinstance(message, Proposal) and message.proposer == signer:
            step = "proposal"
        else:
            return
        slot = (signer, message.height, message.round, step)
        self.signatures += 1
        if self._signed.setdefault(slot, message.value) != message.value:
            place = f"height {message.height}, round {message.round}"
            error = InvariantError(f"peer {number} signed two {step}s at {place}")
            self.broken = self.broken or error
            raise error

    def check(self) -> None:
        """Pass silently if everything held.

        Raises:
            InvariantError: the first thing that did not.
        """
        if self.broken is not None:
            raise self.broken

    def _committed(self, number: int, peer: Peer) -> None:
        self.blocks += 1
        certificate = peer.ledger.tip_certificate
        if certificate is None:
            raise InvariantError(f"peer {number} committed a block without a certificate")
        header: Header = certificate.header
        if header.height <= self._last.get(number, 0):
            raise InvariantError(f"peer {number} committed block {header.height} after block {self._last[number]}")
        self._last[number] = header.height
        below = self._decided.get(header.height - 1)
        if below is not None and header.parent != below[0]:
            raise InvariantError(
                f"peer {number} committed a block {header.height} that stands on another than block {header.height - 1}"
            )
        known = self._decided.get(header.height)
        if known is None:
            self._decided[header.height] = (header.id(), number)
            validators = peer.ledger.validators
            if header.validators_hash != validators.digest():
                return  # the block ended an epoch: the set in force is already the next one
            try:
                certificate.check(self._network, validators)
            except PeerFault as error:
                raise InvariantError(f"peer {number} took block {header.height}: {error.message}") from None
        elif known[0] != header.id():
            raise InvariantError(
                f"agreement: peer {number} decided {hex0x(header.id())[:18]} at height {header.height},"
                f" peer {known[1]} {hex0x(known[0])[:18]}"
            )

    def _accused(self, number: int, validator: str) -> None:
        self.accusations += 1
        if validator not in {hex0x(address) for address in self.byzantine}:
            raise InvariantError(f"peer {number} accuses the honest validator {validator} of signing twice")
