"""A chat as the peer takes it: the command that is asked, the events that are told of its answer. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from nsllm.ids import Address, Digest
from nsllm.node.attachments.attached import Attached
from nsllm.node.attachments.attend import Note
from nsllm.node.engine.port import PromptToken, TokenLogprob
from nsllm.record import Guide, Message, Rendering, Sampling, SignedChunk, Tool, Visibility


@dataclass(frozen=True, slots=True)
class ChatCommand:
    """A validated chat completion request."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    visibility: Visibility | None
    """None: the peer's default."""
    group: str = ""
    """Of a `group` request; empty: the peer's default one."""
    form: Literal["chat", "text"] = "chat"
    """`text`: the only message is the prompt as it stands."""
    prompt_token_ids: tuple[int, ...] = field(default=(), repr=False)
    """Of a text prompt that is given as tokens: the only message is empty then."""
    tools: tuple[Tool, ...] = ()
    guide: Guide | None = None
    rendering: Rendering | None = None
    attached: tuple[Attached, ...] = ()
    """Pictures and tables, one for each `PLACE` in the messages, in order."""
    top_logprobs: int | None = None
    """Alternatives to be told with each token; None: no log-probabilities at all."""
    prompt_logprobs: int | None = None
    """Alternatives to be told with each token of the prompt; None: nothing is told of it."""
    client: str = ""
    """Who asks: generations that wait are started in turns between clients."""
    reuse: bool = True
    """False where a cached answer may not stand in: refused, log-probabilities, several answers to one question."""
    semantic: bool = True
    """False where only an exact repeat may stand in."""
    max_wrong_ppm: int | None = None
    """Share of wrong answers among semantic hits that is accepted; None: the peer's setting."""
    return_token_ids: bool = False
    """The reply tells the tokens of prompt and answer."""
    retrieve: bool | int | None = None
    """Passages of shared documents that the model reads before the question; True: a few; None: the peer's setting."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where an answer comes from; becomes the `x-nsllm-*` headers."""

    kind: Literal["engine", "cache"]
    generator: str
    """Address (0x…) of the member that generated it."""
    score_ppm: int | None = None
    """Certified hybrid score under the present policy; None before certification."""
    height: int | None = None
    age_ms: int | None = None
    match: Literal["exact", "semantic"] | None = None
    """From the cache: an answer to the same question, or to a like one."""
    similarity_ppm: int | None = None
    """From the cache: cosine of the two questions' embeddings."""
    error_bound_ppm: int | None = None
    """From the cache: upper bound on the chance that the answer, right for its own question, is wrong for this one; 0
    for an exact match."""
    model_digest: str | None = None
    """From the cache: model (0x…) that generated it, as its generator claims."""


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage that the model read before the question."""

    chunk: Digest
    document: Digest
    """SHA-256 of the file."""
    source: str
    """The file's name."""
    start: int
    end: int
    """Characters of the document's text, the first and the one after the last."""
    member: Address
    """Who shares the document, and signed the chunk."""

    @classmethod
    def of(cls, signed: SignedChunk) -> Citation:
        """What an answer says of a chunk that it cites."""
        chunk = signed.chunk
        return cls(chunk.digest(), chunk.document, chunk.source, chunk.start, chunk.end, chunk.member)


@dataclass(frozen=True, slots=True)
class ChatStarted:
    """First event: identity of the completion and where it comes from."""

    completion_id: str
    """`chatcmpl-…`; also the receipt's id."""
    model: str
    created_s: int
    source: Source
    visibility: Visibility
    group: str = ""
    """Of a `group` request: the group's name at this peer."""
    attachments: tuple[Note, ...] = ()
    """How what was attached was used."""
    citations: tuple[Citation, ...] = ()
    """Passages that the model read, in the order of their numbers in the prompt."""
    prompt: str = field(default="", repr=False)
    """Of a text form: the prompt's text, that of its tokens if it was given as such."""
    prompt_tokens: int | None = None
    """None: they are counted at the end."""


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """Text as it comes."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens since the last delta, if they were asked for."""
    prompt: tuple[PromptToken, ...] = ()
    """Tokens of the prompt since the last delta, if they were asked for: all of them before the answer's first."""
    tokens: int = 0
    """Of the answer so far; 0 where they are counted at the end."""


@dataclass(frozen=True, slots=True)
class ChatFinished:
    """Last event."""

    finish_reason: Literal["stop", "length", "content_filter"]
    prompt_tokens: int
    completion_tokens: int
    publication: Literal["private", "pending", "unpublished", "certified", "withheld"]
    """`pending`: a record went to the validators; `unpublished`: it failed a quality threshold, see `detail`."""
    detail: str = ""
    prompt_token_ids: tuple[int, ...] = field(default=(), repr=False)
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    """Of the answer, its end token included. Both are empty where nobody knows them, or the answer was withheld."""


ChatEvent = ChatStarted | ChatDelta | ChatFinished


class Listener(Protocol):
    """Who hears of a completion; a trio memory channel is one."""

    def send_nowait(self, event: ChatEvent, /) -> None:
        """Take an event. Raises `trio.WouldBlock` if too much waits already."""
        ...

    async def send(self, event: ChatEvent, /) -> None:
        """Take an event, as soon as there is room for it."""
        ...
