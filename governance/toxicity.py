"""The toxicity layer: two heads over one text, and the louder one counts.

The wording head is linear over hashed character n-grams after a normaliser that undoes leet, look-alike letters and
spacing; it reads the text window by window, so one vile sentence in a long text counts in full. The meaning head is
linear over the text's embedding; it hears harm that needs no swear word. Both are trained and measured by
`benchmarks/train_toxicity.py`; weights are integers and the sums over them exact, so every machine gets the same score.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final, cast

import safetensors

from nsllm.governance.errors import PolicyError
from nsllm.ids import PPM_ONE, Digest, Ppm
from nsllm.record import EMBEDDING_DIMENSIONS

BUCKETS: Final = 1 << 16
NGRAM_LENGTHS: Final = (3, 4, 5)
WINDOW_CHARS: Final = 240
"""About the length of the comments that the wording head learnt from; windows overlap by half."""
SHORT_NGRAMS: Final = 90
"""Texts with fewer n-grams (about six words) count as if they had so many: little text is little evidence."""
MAX_CHARS: Final = 100_000
MAX_HEAD_BYTES: Final = 300_000
MICRO: Final = 1_000_000

_LEET: Final = {
    "0": "o",
    "1": "i",
    "3": "e",
    "4": "a",
    "5": "s",
    "7": "t",
    "@": "a",
    "$": "s",
    "!": "i",
    "|": "i",
    "*": "",
}
_LOOKALIKES: Final = str.maketrans(
    # Cyrillic and IPA, then Greek, Turkish i, struck l and struck o, each as it looks
    "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u0445\u0455\u0456\u0458\u0501\u0261"
    "\u03b1\u03b5\u03b9\u03ba\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7\u0131\u0142\u00f8",
    "abekmhopctyxsijdgaeikvoptuxilo",
    "\u200b\u200c\u200d\u2060\ufeff\u00ad",  # invisible: zero-width spaces and joiners, soft hyphen
)


def normalise(text: str) -> str:
    """Lower-case Latin letters and single spaces, with the usual disguises undone; numbers are dropped.

    >>> normalise("Y0u 1D10T!!!")
    'you idiot'
    >>> normalise("s t u p i d person, 100 times")
    'stupid person times'
    """
    folded = unicodedata.normalize("NFKD", text[:MAX_CHARS]).lower().translate(_LOOKALIKES)
    plain = "".join(char for char in folded if not unicodedata.combining(char))
    kept = re.sub(r"[^a-z]+", " ", " ".join(_unleet(word) for word in plain.replace("'", "").split()))
    joined = re.sub(r"\b(?:[a-z] ){3,}[a-z]\b", lambda match: match.group().replace(" ", ""), f"{kept} ")
    return " ".join(re.sub(r"([a-z])\1{2,}", r"\1\1", joined).split())


def _unleet(word: str) -> str:
    """A word that mixes letters and leet signs, as letters; pure numbers stay what they are."""
    core = word.strip('.,;:!?"()[]{}<>*_-')
    if core.isalpha() or not any(char.isalpha() or char in "@$" for char in core):
        return core
    return "".join(_LEET.get(char, char) for char in core)


def windows(normalised: str) -> Iterator[str]:
    """Overlapping stretches of normalised text, at least one."""
    step = WINDOW_CHARS // 2
    yield normalised[:WINDOW_CHARS]
    for start in range(step, len(normalised) - step, step):
        yield normalised[start : start + WINDOW_CHARS]


def buckets(window: str) -> set[int]:
    """Hash buckets of the window's character n-grams, a space at either end."""
    padded = f" {window} ".encode()
    last = len(padded)
    return {
        zlib.crc32(padded[start : start + length]) % BUCKETS
        for length in NGRAM_LENGTHS
        for start in range(last - length + 1)
    }


def evidence(ngrams: int) -> float:
    """What a window's sum is divided by."""
    return math.sqrt(max(ngrams, SHORT_NGRAMS))


@dataclass(frozen=True, slots=True)
class ToxicityHead:
    """Weights of both heads; `digest` is what the rubric pins as rule set `toxicity`."""

    wording: bytes
    """`(BUCKETS,)`, signed bytes."""
    wording_affine: tuple[int, int]
    """Scale and bias of the wording logit, millionths."""
    meaning: bytes
    """`(384,)`, signed bytes, against an embedding of signed bytes."""
    meaning_affine: tuple[int, int]
    digest: Digest

    def toxicity_ppm(self, text: str, embedding: bytes) -> Ppm:
        """How toxic a text is: 0 harmless, 1,000,000 certainly toxic.

        Args:
            text: what a user or a model wrote; its first 100,000 characters are read.
            embedding: of the same text, 384 signed bytes, as `nsllm.embedding.quantize_embedding` gives it.
        """
        return Ppm(max(self.wording_ppm(text), self.meaning_ppm(embedding)))

    def wording_ppm(self, text: str) -> Ppm:
        """The wording head's loudest window."""
        weights = memoryview(self.wording).cast("b")
        scale, bias = self.wording_affine
        loudest = -math.inf
        for window in windows(normalise(text)):
            hit = buckets(window)
            loudest = max(loudest, sum(weights[bucket] for bucket in hit) / evidence(len(hit)))
        return _ppm(loudest * scale + bias)

    def meaning_ppm(self, embedding: bytes) -> Ppm:
        """The meaning head; a zero embedding (no text) is harmless."""
        if len(embedding) != EMBEDDING_DIMENSIONS:
            raise ValueError(f"embedding of {len(embedding)} bytes, expected {EMBEDDING_DIMENSIONS}")
        if not any(embedding):
            return Ppm(0)
        scale, bias = self.meaning_affine
        weights, vector = memoryview(self.meaning).cast("b"), memoryview(embedding).cast("b")
        return _ppm(sum(a * b for a, b in zip(weights, vector, strict=True)) * scale + bias)


@cache
def default_head() -> ToxicityHead:
    """The head that ships with this version."""
    return read_head(resources.files("nsllm.governance").joinpath("data/toxicity.safetensors").read_bytes())


def read_head(data: bytes) -> ToxicityHead:
    """A head from the bytes of its safetensors file.

    Raises:
        PolicyError: not such a file, or tensors of other names, types or shapes.
    """
    if len(data) > MAX_HEAD_BYTES:
        raise PolicyError(f"toxicity head of {len(data)} bytes, the limit is {MAX_HEAD_BYTES}")
    try:
        tensors = cast("dict[str, dict[str, object]]", dict(safetensors.deserialize(data)))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise PolicyError(f"toxicity head is not a safetensors file: {error}") from None
    return ToxicityHead(
        wording=_tensor(tensors, "wording.weight", "I8", BUCKETS),
        wording_affine=_pair(_tensor(tensors, "wording.affine", "I64", 2)),
        meaning=_tensor(tensors, "meaning.weight", "I8", EMBEDDING_DIMENSIONS),
        meaning_affine=_pair(_tensor(tensors, "meaning.affine", "I64", 2)),
        digest=Digest(hashlib.sha256(data).digest()),
    )


def _tensor(tensors: dict[str, dict[str, object]], name: str, dtype: str, size: int) -> bytes:
    tensor = tensors.get(name)
    if tensor is None or tensor["dtype"] != dtype or tensor["shape"] != [size]:
        found = "missing" if tensor is None else f"{tensor['dtype']} {tensor['shape']}"
        raise PolicyError(f"toxicity head: {name} is {found}, expected {dtype} [{size}]")
    return bytes(cast("bytes", tensor["data"]))


def _pair(data: bytes) -> tuple[int, int]:
    scale, bias = struct.unpack("<2q", data)
    return scale, bias


def _ppm(logit_micro: float) -> Ppm:
    bounded = max(-40.0, min(40.0, logit_micro / MICRO))
    return Ppm(round(PPM_ONE / (1.0 + math.exp(-bounded))))
