"""Requests and records: the words that the cache, the scores and the receipts all speak.

A request is what was asked; a record is an answer as published, signed by the peer that generated it. Both are
canonical values: sampling parameters are integers in millionths, embeddings are signed bytes.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Annotated, Final, Literal, Self

from msgspec import Meta

from nsllm import canonical, crypto
from nsllm.canonical import Value
from nsllm.crypto import MemberKey
from nsllm.errors import EncodingError
from nsllm.ids import (
    Address,
    AddressField,
    CountField,
    Digest,
    DigestField,
    NetworkId,
    NetworkIdField,
    SignatureField,
    TimeMsField,
)

MAX_RECORD_BYTES: Final = 512 * 1024
"""Canonical size that any peer accepts for one signed record."""
SIGNED_BYTES: Final = 1 + len(b"\xa6record") + len(b"\xa9signature") + 2 + 65
"""What a signed record adds to the record's encoding: a map of two, its keys, 65 bytes after their type and length."""
MAX_TEXT_CHARS: Final = 100_000
EMBEDDING_DIMENSIONS: Final = 384
MAX_CHUNK_CHARS: Final = 4_000
"""Of one chunk: 256 tokens, which an encoder reads, are some 1,200 characters of English."""
MAX_CHUNK_BYTES: Final = 24 * 1024
"""Of one signed chunk in its canonical form: a character takes up to four bytes, and something stands beside them."""
MAX_SOURCE_CHARS: Final = 200
MAX_STOP_TOKENS: Final = 64
MAX_BAD_WORDS: Final = 64
MAX_BAD_WORD_CHARS: Final = 64
MAX_TEMPLATE_OPTIONS: Final = 16
MAX_OPTION_CHARS: Final = 4_096
TEMPLATE_WORDS: Final = frozenset(
    {
        "messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "raise_exception",
        "strftime_now", "range", "dict", "lipsum", "cycler", "joiner", "namespace",
    }
)  # fmt: skip
"""What chat templates are given anyway: the conversation, and jinja's own functions."""
MAX_EVIDENCE: Final = 32
"""Chunks that one answer cites."""

Micro = Annotated[int, Meta(ge=0, le=1_000_000_000)]
"""A real parameter times 1,000,000: temperature 0.2 is 200,000."""
SignedMicro = Annotated[int, Meta(ge=-1_000_000_000, le=1_000_000_000)]
"""The same with a sign: a presence penalty of -0.5 is -500,000."""
TextField = Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
TokenField = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Visibility = Literal["private", "group", "public"]
NameField = Annotated[str, Meta(min_length=1, max_length=64)]
OptionName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z")]
OptionField = Annotated[str, Meta(max_length=MAX_OPTION_CHARS, pattern=r'^(true\Z|false\Z|-?[0-9]{1,19}\Z|")')]
OptionValue = bool | int | str
FinishReason = Literal["stop", "length", "content_filter"]


class ToolCall(Value, frozen=True, kw_only=True):
    """A function that the assistant asks its caller to run."""

    id: Annotated[str, Meta(min_length=1, max_length=64)]
    name: NameField
    arguments: TextField
    """JSON text as the model wrote it; may be invalid."""


class Tool(Value, frozen=True, kw_only=True):
    """A function that the assistant may ask for."""

    name: NameField
    description: TextField = ""
    parameters: TextField = ""
    """JSON schema of the arguments, as JSON text without spaces, keys in the caller's order (guided answers write their
    properties in it); empty: none are taken."""


class Guide(Value, frozen=True, kw_only=True):
    """What the whole answer must match."""

    kind: Literal["json_object", "json_schema", "regex", "choice", "grammar"]
    text: TextField = ""
    """The schema (as `Tool.parameters`), the regular expression, the choices (a JSON list), the grammar (Lark as
    llguidance reads it); empty for `json_object`."""


class Message(Value, frozen=True, kw_only=True):
    """One turn of a conversation, as the OpenAI API names it."""

    role: Literal["system", "user", "assistant", "tool"]
    content: TextField
    tool_calls: Annotated[tuple[ToolCall, ...], Meta(max_length=64)] = ()
    """Of the assistant."""
    tool_call_id: Annotated[str, Meta(max_length=64)] = ""
    """Of a tool: which call this is the result of."""


class Sampling(Value, frozen=True, kw_only=True):
    """Sampling parameters; None where the caller left the choice to the peer.

    Names and meanings are the OpenAI API's (vLLM's for `top_k`, `min_p` and `repetition_penalty`).
    """

    temperature_micro: Micro | None = None
    top_p_micro: Micro | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    min_p_micro: Micro | None = None
    repetition_penalty_micro: Micro | None = None
    presence_penalty_micro: SignedMicro | None = None
    frequency_penalty_micro: SignedMicro | None = None
    logit_bias: Annotated[tuple[tuple[TokenField, SignedMicro], ...], Meta(max_length=1024)] = ()
    """(token, what is added to its logit), by rising token."""
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    """The answer does not end by itself before; stop strings and stop tokens wait as well."""
    stop: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=4)] = ()
    stop_token_ids: Annotated[tuple[TokenField, ...], Meta(max_length=MAX_STOP_TOKENS)] = ()
    """Tokens that end the answer as the model's own end tokens do, by rising id; they are no part of its text."""
    bad_words: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=MAX_BAD_WORD_CHARS)], ...], Meta(max_length=MAX_BAD_WORDS)
    ] = ()
    """Words whose last token is never chosen after those before it; see `nsllm.node.engine.bad_words`."""
    truncate_prompt_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    """Tokens of the prompt that are read, the last ones; 0: as many as the context holds beside the answer. See
    `nsllm.node.engine.truncation`."""


class Rendering(Value, frozen=True, kw_only=True):
    """How a conversation becomes a prompt, where a caller asks for more than the chat template does by itself."""

    options: Annotated[tuple[tuple[OptionName, OptionField], ...], Meta(max_length=MAX_TEMPLATE_OPTIONS)] = ()
    """(name, value) that the template is told beside the conversation, by rising name; `chat_template_kwargs`. A value
    is true, false, a whole number or text, as JSON writes it."""
    continues: bool = False
    """The last message is the assistant's, and the answer goes on with it; `continue_final_message`."""

    def __post_init__(self) -> None:
        names = [name for name, _ in self.options]
        if names != sorted(set(names)):
            raise ValueError("options of a chat template that are not in rising order of their names")
        if taken := TEMPLATE_WORDS.intersection(names):
            raise ValueError(f"{min(taken)!r} is no option of a chat template")
        if not names and not self.continues:
            raise ValueError("a rendering that asks for nothing")
        for name, text in self.options:
            if option_text(_option(text)) != text:
                raise ValueError(f"option {name!r} is no value in JSON's shortest spelling")

    def values(self) -> dict[str, OptionValue]:
        """The options as a template takes them."""
        return {name: _option(text) for name, text in self.options}


class Request(Value, frozen=True, kw_only=True):
    """What was asked, in its canonical form; its digest is the exact-match key of the cache."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    model_digest: DigestField
    """Digest over weights, dtype and quantization of the model that answers; over its declared name only, where an
    upstream server runs it. The generator's claim in either case."""
    messages: Annotated[tuple[Message, ...], Meta(min_length=1, max_length=256)]
    sampling: Sampling
    """As the caller set them; unset ones stay None here."""
    form: Literal["chat", "text"] = "chat"
    """`text`: the only message is the prompt as it stands, without the model's chat template."""
    prompt_token_ids: Annotated[tuple[TokenField, ...], Meta(max_length=MAX_TEXT_CHARS)] = ()
    """Of a `text` prompt that was given as tokens which its text, the only message, does not read as. Empty: the prompt
    is the text's own tokens, also where those were sent; so one prompt has one key."""
    tools: Annotated[tuple[Tool, ...], Meta(max_length=64)] = ()
    guide: Guide | None = None
    rendering: Rendering | None = None
    """None: the model's chat template as it is, and an answer of its own."""
    attachments: Annotated[tuple[DigestField, ...], Meta(max_length=64)] = ()

    def __post_init__(self) -> None:
        if self.prompt_token_ids and self.form != "text":
            raise ValueError("a conversation with a prompt's token ids")
        if self.rendering is None:
            return
        last = self.messages[-1]
        if self.form != "chat":
            raise ValueError("a text with options of a chat template")
        if self.rendering.continues and (last.role != "assistant" or last.tool_calls or not last.content.strip()):
            raise ValueError("an answer that continues a message which is no text of the assistant's")

    def judged(self, answer: str) -> tuple[tuple[Message, ...], str]:
        """What an answer replies to, and the whole of the reply: one that continues a message is judged with it."""
        if self.rendering is None or not self.rendering.continues:
            return self.messages, answer
        return self.messages[:-1], self.messages[-1].content + answer

    def question(self) -> str:
        """The last user turn: what relevance is judged against and what semantic look-ups embed."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")


class Chunk(Value, frozen=True, kw_only=True):
    """A piece of a document, as the member that shares it signs it. Public: whoever asks near it may read it."""

    network: NetworkIdField
    member: AddressField
    document: DigestField
    """SHA-256 of the file, as `sha256sum` prints it."""
    source: Annotated[str, Meta(min_length=1, max_length=MAX_SOURCE_CHARS, pattern=r"^[^\x00-\x1f\x7f]+\Z")]
    """The file's name, without its folder."""
    number: Annotated[int, Meta(ge=0, le=1_000_000)]
    """Its place among the document's chunks."""
    start: Annotated[int, Meta(ge=0, le=2**40)]
    end: Annotated[int, Meta(ge=0, le=2**40)]
    """Characters of the document's extracted text that it covers, the first and the one after the last."""
    text: Annotated[str, Meta(min_length=1, max_length=MAX_CHUNK_CHARS)]
    encoder: DigestField
    embedding: Annotated[bytes, Meta(min_length=EMBEDDING_DIMENSIONS, max_length=EMBEDDING_DIMENSIONS)]
    """Of `text` by that encoder, quantized like a record's: anybody with the encoder can compute it again."""
    created_ms: TimeMsField
    """When the document was taken in; a withdrawal counts for what was taken in before it."""

    def digest(self) -> Digest:
        """What the member signs and everybody else names the chunk by."""
        return canonical.digest("chunk", self.network, self)


class SignedChunk(Value, frozen=True, kw_only=True):
    """A chunk and its member's signature: what holders keep, and the evidence that answers cite."""

    chunk: Chunk
    signature: SignatureField

    def check(self, network: NetworkId) -> None:
        """Pass silently if the chunk belongs to `network` and its member signed it.

        Raises:
            EncodingError: another network's chunk, or a span that is none.
            SignatureError: not the member's signature.
        """
        chunk = self.chunk
        if chunk.network != network:
            raise EncodingError(f"chunk of network {chunk.network.hex()[:16]}, not {network.hex()[:16]}")
        if chunk.start >= chunk.end:
            raise EncodingError(f"chunk of characters {chunk.start} to {chunk.end}: it must end after its start")
        crypto.verify(chunk.digest(), self.signature, chunk.member)


class Record(Value, frozen=True, kw_only=True, dict=True, gc=True):
    """An answer as published. `group` and `public` requests make one; `private` ones never do."""

    network: NetworkIdField
    request: Request
    generator: AddressField
    visibility: Literal["group", "public"]
    sampling: Sampling
    """The effective parameters, with the model card's values filled in; None where an upstream server chose."""
    prompt_token_ids: Annotated[tuple[TokenField, ...], Meta(max_length=MAX_TEXT_CHARS)]
    token_ids: Annotated[tuple[TokenField, ...], Meta(max_length=MAX_TEXT_CHARS)]
    """Of the answer. Both are empty where the ids are unknown: an upstream server wrote the answer and gave none."""
    text: TextField
    finish_reason: Literal["stop", "length"]
    embedding: Annotated[bytes, Meta(min_length=EMBEDDING_DIMENSIONS, max_length=EMBEDDING_DIMENSIONS)]
    """The question's embedding: 384 signed bytes, unit vector times 127, rounded."""
    evidence: Annotated[tuple[SignedChunk, ...], Meta(max_length=MAX_EVIDENCE)] = ()
    """Chunks that the model read before the question, in the order in which they stand in the request's messages; see
    `nsllm.passages`."""
    nonce: CountField = 0
    """Tells apart two records of one generator with the same content."""
    salt: Annotated[bytes, Meta(max_length=32)] = b""
    """Of a group's record, 32 bytes that only the group can compute: its request key and its digest cannot be guessed
    from the question. Empty for public ones."""
    created_ms: TimeMsField

    def __post_init__(self) -> None:
        if len(self.salt) != (32 if self.visibility == "group" else 0):
            raise ValueError(f"a {self.visibility} record with {len(self.salt)} bytes of salt")

    def key(self) -> Digest:
        """Exact-match key of its request, salted if it is a group's."""
        return request_key(self.network, self.request, self.salt)

    def digest(self) -> Digest:
        """What the generator signs and everybody else names the record by; computed once."""
        return self._measured[0]

    @property
    def size_bytes(self) -> int:
        """Length of the canonical encoding; computed with the digest, which needs the same bytes."""
        return self._measured[1]

    @cached_property
    def _measured(self) -> tuple[Digest, int]:
        data = canonical.encode(self)
        return canonical.digest("record", self.network, data), len(data)


class SignedRecord(Value, frozen=True, kw_only=True, dict=True, gc=True):
    """A record and its generator's signature."""

    record: Record
    signature: SignatureField

    def check(self, network: NetworkId) -> None:
        """Pass silently if the record belongs to `network` and its generator signed it.

        Raises:
            EncodingError: another network's record.
            SignatureError: not the generator's signature.
        """
        if self.record.network != network:
            raise EncodingError(f"record of network {self.record.network.hex()[:16]}, not {network.hex()[:16]}")
        generator = self.record.generator
        if generator not in self._signers:
            crypto.verify(self.record.digest(), self.signature, generator)
            self._signers.add(generator)

    @classmethod
    def sign(cls, key: MemberKey, record: Record) -> Self:
        """The record with a signature by `key`, which need not be recovered here."""
        signed = cls(record=record, signature=key.sign(record.digest()))
        signed._signers.add(key.address)
        return signed

    @cached_property
    def _signers(self) -> set[Address]:
        """Whoever is known to have made the signature: nobody before it is made or checked here."""
        return set()

    @property
    def size_bytes(self) -> int:
        """Length of the canonical encoding."""
        return self.record.size_bytes + SIGNED_BYTES


def option_text(value: OptionValue) -> str:
    """An option of `Rendering` as it stands there."""
    return json.dumps(value, ensure_ascii=False)


def _option(text: str) -> OptionValue:
    """Raises `ValueError` if it is none."""
    value = json.loads(text)
    if not isinstance(value, bool | int | str):
        raise ValueError("an option that is neither true, false, a whole number nor text")  # noqa: TRY004 - as msgspec wants it
    return value


def request_key(network: NetworkId, request: Request, salt: bytes = b"") -> Digest:
    """Exact-match key: digest of the canonical request under the network's domain, and of a group's salt, if any."""
    plain = canonical.digest("request", network, request)
    return canonical.digest("group request", network, plain + salt) if salt else plain


def sign_record(key: MemberKey, record: Record) -> SignedRecord:
    """The record with its generator's signature; `key` must be the key of `record.generator`."""
    return SignedRecord.sign(key, record)


def sign_chunk(key: MemberKey, chunk: Chunk) -> SignedChunk:
    """The chunk with its member's signature; `key` must be the key of `chunk.member`."""
    return SignedChunk(chunk=chunk, signature=key.sign(chunk.digest()))
