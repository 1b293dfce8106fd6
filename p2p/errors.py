"""What can go wrong between peers.

NetworkError
├── UnreachableError       no connection to that peer
├── StreamClosedError      the stream or connection ended
├── ProtocolRefusedError   the peer does not serve that protocol
├── DeadlineError          the peer did not answer in time
├── FrameError             (PeerFault) a frame too long, cut short or not decodable
├── CardError              (PeerFault) a peer card that does not hold
├── MisbehaviourError      (PeerFault) a well-formed message that breaks the protocol's rules
└── RefusedError           the peer answered with a refusal, with its reason
"""

from __future__ import annotations

from nsllm.errors import NsllmError, PeerFault


class NetworkError(NsllmError):
    """Root of this room's errors."""

    code = "network_error"


class UnreachableError(NetworkError):
    """No connection to that peer can be had now."""

    code = "unreachable"


class StreamClosedError(NetworkError):
    """The stream or its connection ended."""

    code = "stream_closed"


class ProtocolRefusedError(NetworkError):
    """The peer does not serve that protocol."""

    code = "protocol_refused"


class FrameError(NetworkError, PeerFault):
    """A frame that is too long, cut short, or not decodable."""

    code = "bad_frame"


class DeadlineError(NetworkError):
    """The peer did not answer in time."""

    code = "deadline"


class CardError(NetworkError, PeerFault):
    """A peer card that does not hold: wrong key, signature, network or term."""

    code = "bad_card"


class MisbehaviourError(NetworkError, PeerFault):
    """A well-formed message that breaks the protocol's rules."""

    code = "misbehaviour"


class RefusedError(NetworkError):
    """The peer answered that it will not: its reason is in the message."""

    code = "refused"
