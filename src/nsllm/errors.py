"""The one error root. Every room derives its own tree from `NsllmError` in its `errors.py`.

An error says what was wrong, with the value, and what to do about it. Prompts, answers and keys never stand in an
error: pass them through `nsllm.content.redact` first.
"""

from __future__ import annotations


class NsllmError(Exception):
    """Root of every error that this project raises on purpose.

    Args:
        message: what was wrong, with the offending value.
        hint: what the reader can do about it; may be empty.
    """

    code: str = "nsllm_error"
    """Stable machine-readable name; stands in logs, metrics and JSON output."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class PeerFault(NsllmError):  # noqa: N818 - says whose fault, not what
    """A remote peer broke a rule: it costs that peer, never us."""

    code = "peer_fault"


class OwnFault(NsllmError):  # noqa: N818
    """This peer cannot go on with what it was doing: retried by a supervisor, or the peer stops loudly."""

    code = "own_fault"


class UsageError(NsllmError):
    """The user asked for something that cannot be: a flag, a setting, a file. Exit status 2."""

    code = "usage_error"


class EncodingError(PeerFault):
    """Bytes or JSON that are not the one canonical spelling of a value of the expected type."""

    code = "encoding_error"


class SignatureError(PeerFault):
    """A signature that is malformed, not canonical (high s), or made by somebody else."""

    code = "signature_error"
