"""What can go wrong at the command line.

CliError
├── UnreachableApiError    no peer answers at that address
├── RefusedError           the peer answered with an error: its words are the message
├── NoReceiptError         the receipt did not get as far as was asked
├── StepError              a step of the demonstration failed: its name is in the message
├── FileError              (UsageError) a file whose text cannot be had
└── DoctorError            something on this machine blocks
"""

from __future__ import annotations

from nsllm.errors import NsllmError, UsageError


class CliError(NsllmError):
    """Root of the door's errors."""

    code = "cli_error"


class UnreachableApiError(CliError):
    """No peer answers at that address."""

    code = "unreachable_api"


class RefusedError(CliError):
    """The peer answered with an error."""

    code = "refused"

    def __init__(self, message: str, *, hint: str = "", status: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class NoReceiptError(CliError):
    """The receipt did not get as far as was asked."""

    code = "no_receipt"


class StepError(CliError):
    """A step of the demonstration failed."""

    code = "step_failed"


class FileError(CliError, UsageError):
    """A file whose text cannot be had."""

    code = "bad_file"


class DoctorError(CliError):
    """Something on this machine blocks a peer."""

    code = "machine_not_ready"
