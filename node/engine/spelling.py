"""What tokens spell: bytes of single tokens, and text of tokens as they come."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

REPLACEMENT: Final = "\ufffd"
"""What a decoder shows for bytes that are no character, or not one yet."""
BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""How SentencePiece writes a token that is one byte."""


class TextDecoder(Protocol):
    """Text of one sequence, complete characters only."""

    def push(self, token_id: int) -> str:
        """Text that this token completes; may be empty."""
        ...

    def finish(self) -> str:
        """What was held back, once no token follows."""
        ...


class Spelling(Protocol):
    """The tokens of a model."""

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for, special ones as they are written; not always whole characters."""
        ...

    def written(self, token_id: int) -> str:
        """A token as the vocabulary writes it; empty for an id without a token."""
        ...

    def decoder(self) -> TextDecoder:
        """For the text of a new sequence, special tokens left out."""
        ...


class ByteSpelling:
    """Tokens of a byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): each spells its bytes, wherever it stands.

    Args:
        written: of a token id, as the vocabulary writes it; None for an id without a token.
        special: tokens that are no text, by id, as they are written.
    """

    def __init__(self, written: Callable[[int], str | None], special: Mapping[int, str]) -> None:
        self._written = written
        self._special = special
        self._known: dict[int, bytes] = dict.fromkeys(special, b"")

    def token_bytes(self, token_id: int) -> bytes:
        """See `Spelling`."""
        special = self._special.get(token_id)
        return self.text_bytes(token_id) if special is None else special.encode()

    def written(self, token_id: int) -> str:
        """See `Spelling`."""
        return self._written(token_id) or ""

    def text_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text."""
        known = self._known.get(token_id)
        if known is None:
            written = self._written(token_id) or ""
            try:
                known = bytes(BYTES[char] for char in written)
            except KeyError:  # added to the vocabulary as it stands
                known = written.encode()
            self._known[token_id] = known
        return known

    def decoder(self) -> TextDecoder:
        """See `Spelling`."""
        return ByteDecoder(self.text_bytes)


class WindowSpelling:
    """Tokens of any tokenizer, which spell differently in different places.

    Args:
        decode: token ids to text, special tokens left out.
        written: of a token id, as the vocabulary writes it; None for an id without a token.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], written: Callable[[int], str | None]) -> None:
        self._decode = decode
        self._written = written

    def token_bytes(self, token_id: int) -> bytes:
        """See `Spelling`."""
        written = self._written(token_id) or ""
        byte = BYTE_TOKEN.fullmatch(written)
        return bytes.fromhex(byte[1]) if byte else written.replace("▁", " ").encode()

    def written(self, token_id: int) -> str:
        """See `Spelling`."""
        return self._written(token_id) or ""

    def decoder(self) -> TextDecoder:
        """See `Spelling`."""
        return WindowDecoder(self._decode)


class ByteDecoder:
    """Bytes to characters; broken ones are shown as Python and tokenizers show them.

    Args:
        text_bytes: of a token id.
    """

    def __init__(self, text_bytes: Callable[[int], bytes]) -> None:
        self._text_bytes = text_bytes
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token_id: int) -> str:
        """See `TextDecoder`."""
        return self._decode(self._text_bytes(token_id))

    def finish(self) -> str:
        """See `TextDecoder`."""
        return self._decode(b"", final=True)


class WindowDecoder:
    """Decodes a short window of recent tokens each time.

    The window begins one emitted piece back, because decoders treat the first token of a text differently
    (SentencePiece drops its space).

    Args:
        decode: token ids to text, special tokens left out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0
        """First token of the window."""
        self._fresh = 0
        """First token of the window whose text was not complete when the window last moved."""
        self._sent_chars = 0
        """Characters of the window's text that have left the decoder."""

    def push(self, token_id: int) -> str:
        """See `TextDecoder`."""
        self._ids.append(token_id)
        window = self._decode(self._ids[self._start :])
        # What can still change are the replacements at the end: of a broken sequence one, or of byte tokens one each.
        complete = len(window.rstrip(REPLACEMENT))
        text = window[self._sent_chars : complete]
        self._sent_chars = max(self._sent_chars, complete)
        if text and complete == len(window):
            self._start, self._fresh = self._fresh, len(self._ids)
            self._sent_chars = len(self._decode(self._ids[self._start : self._fresh]))
        return text

    def finish(self) -> str:
        """See `TextDecoder`."""
        rest = self._decode(self._ids[self._start :])[self._sent_chars :]
        self._sent_chars += len(rest)
        return rest


def spelling_of(tokenizer: Tokenizer, decode: Callable[[Sequence[int]], str]) -> Spelling:
    """The quickest that fits.

    Args:
        tokenizer: of the model.
        decode: token ids to text, special tokens left out.
    """
    if not isinstance(tokenizer.decoder, ByteLevel):
        return WindowSpelling(decode, tokenizer.id_to_token)
    added = tokenizer.get_added_tokens_decoder()
    return ByteSpelling(tokenizer.id_to_token, {number: one.content for number, one in added.items() if one.special})


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


BYTES: Final = _byte_of_char()
"""Byte of each character that byte-level vocabularies write."""
