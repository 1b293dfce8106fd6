"""What can go wrong in a peer, with the HTTP status and OpenAI error type that the API answers.

NodeError
├── ConfigError            (UsageError) a setting that cannot be used
├── DataFolderError        (UsageError) the data folder is another peer's
├── KeyFileError           (UsageError) a key file that is damaged or not ours
├── PortError              (UsageError) a TCP port that is in use
├── InviteError            an invitation that cannot be used
├── EngineError            (OwnFault) the model worker failed              503 server_error
├── ModelMissingError      (UsageError) model files are not there
├── ServiceError           an answer that the API gives
│   ├── InvalidRequestError                                                400 invalid_request_error
│   ├── ContextOverflowError                                               400 context_length_exceeded
│   ├── UnknownModelError                                                  404 model_not_found
│   ├── NotFoundError                                                      404
│   ├── OverloadedError                                                    429 rate_limit_error, Retry-After
│   ├── MemoryBudgetError                                                  507
│   └── NotReadyError                                                      503
"""

from __future__ import annotations

from nsllm.errors import NsllmError, OwnFault, UsageError


class NodeError(NsllmError):
    """Root of this room's errors."""

    code = "node_error"


class ConfigError(NodeError, UsageError):
    """A setting that cannot be used."""

    code = "bad_config"


class DataFolderError(NodeError, UsageError):
    """The data folder is in use by another peer."""

    code = "data_folder_in_use"


class KeyFileError(NodeError, UsageError):
    """A key file that is damaged, missing or not ours; the message never shows a key."""

    code = "bad_key_file"


class PortError(NodeError, UsageError):
    """A TCP port that another process holds."""

    code = "port_in_use"


class InviteError(NodeError):
    """An invitation that is malformed, unknown, used or expired."""

    code = "bad_invite"


class EngineError(NodeError, OwnFault):
    """The model worker failed; the supervisor restarts it."""

    code = "engine_failed"


class ModelMissingError(NodeError, UsageError):
    """Model files are not where they should be."""

    code = "model_missing"


class ServiceError(NodeError):
    """An error that the API answers with a status of its own."""

    code = "server_error"
    status = 500
    kind = "server_error"
    retry_after_s: int | None = None

    def __init__(self, message: str, *, hint: str = "", param: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.param = param
        """The request field that is at fault, as OpenAI's errors name it."""


class InvalidRequestError(ServiceError):
    """The request is malformed or asks for what cannot be."""

    code = "invalid_request"
    status = 400
    kind = "invalid_request_error"


class ContextOverflowError(InvalidRequestError):
    """The prompt does not fit the model's context."""

    code = "context_length_exceeded"


class UnknownModelError(InvalidRequestError):
    """No such model here."""

    code = "model_not_found"
    status = 404


class NotFoundError(InvalidRequestError):
    """No such thing here."""

    code = "not_found"
    status = 404


class OverloadedError(ServiceError):
    """The queue is full."""

    code = "rate_limit_exceeded"
    status = 429
    kind = "rate_limit_error"
    retry_after_s = 1


class MemoryBudgetError(ServiceError):
    """Not enough memory for a model."""

    code = "not_enough_memory"
    status = 507


class NotReadyError(ServiceError):
    """The peer cannot serve this yet."""

    code = "not_ready"
    status = 503
    retry_after_s = 2
