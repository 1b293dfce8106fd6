"""What peer and model worker say to each other: length-prefixed MessagePack over an inherited socket pair.

A frame is a 4-byte big-endian length and that many bytes. Both ends are ours, yet lengths are bounded and types
checked: a worker that went mad must not take the peer with it. Unlike the network's values these carry floats; they
are never hashed, signed or stored.
"""

from __future__ import annotations

from typing import Annotated, Final, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from nsllm.errors import EncodingError
from nsllm.governance.ports import JUDGED_TOKENS, Claim, Trace
from nsllm.node.engine.port import EngineRequest, PromptToken, Readable, TokenLogprob
from nsllm.record import Message, Sampling

HEAD_BYTES: Final = 4
MAX_FRAME_BYTES: Final = 16 << 20
"""More than 32 texts of 100,000 characters."""
MAX_BATCH: Final = 32
"""Texts or items in one message."""

Conversation = tuple[Message, ...]


class Generate(msgspec.Struct, frozen=True, tag=True):
    """Start a generation. Answered by `Started` and its share of each `Step`; or by `Refused`, at any time."""

    job: int
    request: EngineRequest
    """Its sampling is complete but for `max_tokens`, which None leaves to `max_tokens_cap`."""
    max_tokens_cap: int


class Embed(msgspec.Struct, frozen=True, tag=True):
    """Embed texts. Answered by `Embedded`, or by `Refused`."""

    job: int
    texts: Annotated[tuple[Readable, ...], Meta(max_length=MAX_BATCH)]
    most_tokens: int | None = None
    """Of each that are read."""


class Judge(msgspec.Struct, frozen=True, tag=True):
    """Read answers under teacher forcing. Answered by `Judged`, or by `Refused`."""

    job: int
    items: Annotated[tuple[tuple[Conversation, str], ...], Meta(max_length=MAX_BATCH)]
    most_tokens: int = JUDGED_TOKENS
    """Of an answer."""


class Retrace(msgspec.Struct, frozen=True, tag=True):
    """Read an answer's own tokens again. Answered by `Retraced`, or by `Refused`."""

    job: int
    claim: Claim
    card: Sampling
    """Parameters of the model's card."""
    beside: Conversation = ()
    """After which the head of the answer is read, too; empty: none."""


class Tokenize(msgspec.Struct, frozen=True, tag=True):
    """What a prompt's tokens are. Answered by `Tokenized`, or by `Refused`."""

    job: int
    request: EngineRequest
    special: bool
    """Of a text: with the tokens that the tokenizer puts before it."""


class Detokenize(msgspec.Struct, frozen=True, tag=True):
    """What tokens spell. Answered by `Detokenized`, or by `Refused`."""

    job: int
    token_ids: tuple[int, ...]
    apart: bool = False
    """Each token as the vocabulary writes it, not their text."""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Forget a job; nothing answers, and an unknown job is no mistake."""

    job: int


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Answered by `Pong`, between two units of work."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """First message of a worker: both models are loaded."""

    load_s: float
    rss_bytes: int


class Started(msgspec.Struct, frozen=True, tag=True):
    """The prompt fits; `max_tokens` is what will be generated at most."""

    job: int
    prompt_token_ids: tuple[int, ...]
    max_tokens: int


class PromptTold(msgspec.Struct, frozen=True, tag=True):
    """How likely the next tokens of a prompt are, as far as it was read; comes before the first gain, if asked for."""

    job: int
    tokens: tuple[PromptToken, ...]


class Gain(msgspec.Struct, frozen=True, array_like=True):
    """What a step gave one generation."""

    job: int
    token_ids: tuple[int, ...]
    text: str
    """Complete characters that these tokens and earlier ones spell."""
    reason: Literal["stop", "length"] | None = None
    """The generation has ended, and why."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One a token, if they were asked for."""


class Load(msgspec.Struct, frozen=True, array_like=True):
    """How full the worker is after a step, and what the step took: nothing, if it only says that somebody left.

    Blocks are 0 of 0 where nobody counts them.
    """

    step_s: float
    """Time of the whole step: forward pass, choices, text."""
    rows: int
    """Tokens that the forward pass read."""
    running: int
    """Generations that the step read tokens of."""
    waiting: int
    """Generations that the worker has no room for yet."""
    prompt_tokens: int
    """Of `rows`: tokens of prompts."""
    queried_tokens: int
    """Tokens of the prompts that got room since the last step."""
    found_tokens: int
    """Of those: tokens whose keys and values were known already."""
    used_blocks: int
    """Of keys and values, held by some sequence."""
    blocks: int


class Step(msgspec.Struct, frozen=True, tag=True):
    """One step of the worker, for all generations at once."""

    gains: tuple[Gain, ...]
    load: Load


class Embedded(msgspec.Struct, frozen=True, tag=True):
    """Vectors as little-endian float32; tokens read in all."""

    job: int
    vectors: tuple[bytes, ...]
    tokens: int


class Judged(msgspec.Struct, frozen=True, tag=True):
    """(mean natural log-probability a token, tokens, the mean over the first of them) for each item."""

    job: int
    rows: tuple[tuple[float, int, float], ...]


class Retraced(msgspec.Struct, frozen=True, tag=True):
    """How the tokens fit."""

    job: int
    trace: Trace


class Tokenized(msgspec.Struct, frozen=True, tag=True):
    """Tokens of a prompt, whether it fits the context or not."""

    job: int
    token_ids: tuple[int, ...]


class Detokenized(msgspec.Struct, frozen=True, tag=True):
    """The text of tokens; what is no character shows as U+FFFD."""

    job: int
    text: str
    """Empty if they were asked for apart."""
    written: tuple[str, ...] = ()
    """Each as the vocabulary writes it, if they were asked for apart."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The job cannot be done, or not be finished; other jobs are not touched."""

    job: int
    kind: Literal["overflow", "invalid", "failed"]
    """The caller's doing, but for `failed`: a mistake of ours or of the model's files."""
    message: str
    param: str | None = None
    """The request field that is at fault."""


class Pong(msgspec.Struct, frozen=True, tag=True):
    """The worker is alive."""


ToWorker = Generate | Embed | Judge | Retrace | Tokenize | Detokenize | Cancel | Ping
FromWorker = (
    Ready | Started | PromptTold | Step | Embedded | Judged | Retraced | Tokenized | Detokenized | Refused | Pong
)
M = TypeVar("M")


def _plain_text(value: object) -> str:
    """`nsllm.content.Text` and other kinds of `str` as plain text, which is all that msgspec writes."""
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"{type(value).__name__} in a worker message")


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=_plain_text)


def frame(message: msgspec.Struct) -> bytes:
    """The message as it goes over a socket.

    Raises:
        EncodingError: longer than `MAX_FRAME_BYTES`.
    """
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise EncodingError(f"message of {len(body)} bytes to the model worker, the limit is {MAX_FRAME_BYTES}")
    return len(body).to_bytes(HEAD_BYTES, "big") + body


class FrameReader(Generic[M]):
    """Messages out of a byte stream that comes in any pieces."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[M]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[M]:
        """Messages that `data` completes.

        Raises:
            EncodingError: a length beyond the limit, or a body that is no message.
        """
        self._buffer += data
        messages: list[M] = []
        while len(self._buffer) >= HEAD_BYTES:
            size_bytes = int.from_bytes(self._buffer[:HEAD_BYTES], "big")
            if size_bytes > MAX_FRAME_BYTES:
                raise EncodingError(f"frame that claims {size_bytes} bytes, the limit is {MAX_FRAME_BYTES}")
            end = HEAD_BYTES + size_bytes
            if len(self._buffer) < end:
                break
            try:
                messages.append(self._decoder.decode(self._buffer[HEAD_BYTES:end]))
            except msgspec.DecodeError as error:
                raise EncodingError(f"frame of {size_bytes} bytes is no message: {type(error).__name__}") from None
            del self._buffer[:end]
        return messages


def worker_reader() -> FrameReader[ToWorker]:
    """For the worker's end."""
    return FrameReader(msgspec.msgpack.Decoder(ToWorker))


def peer_reader() -> FrameReader[FromWorker]:
    """For the peer's end."""
    return FrameReader(msgspec.msgpack.Decoder(FromWorker))
