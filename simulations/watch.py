"""What must hold at every event of a simulated network, whatever goes wrong in it.

At each committed block: no other peer has another block at that height (agreement), and the certificate holds. At each
proof of double signing: whom it names is one that the scenario made Byzantine.
"""

from __future__ import annotations

from nsllm.consensus.header import Header
from nsllm.errors import PeerFault
from nsllm.ids import Address, Digest, NetworkId, hex0x
from nsllm.node.peer import Peer
from nsllm.node.service import PeerEvent
from nsllm.simulations.errors import InvariantError


class Watch:
    """Looks on; raises where a promise is broken, which ends the run."""

    def __init__(self, network: NetworkId) -> None:
        self._network = network
        self._decided: dict[int, tuple[Digest, int]] = {}
        """Header id at a height, and the peer that committed it first."""
        self.byzantine: frozenset[Address] = frozenset()
        self.blocks = 0
        """Commits that were looked at."""
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
