"""Guides: what an answer must match, kept token by token with llguidance. Imported in the worker process only.

A guide's size, the work for it at each token and its memory are bounded by llguidance's own limits, which count steps
and not seconds. One thing they do not count is refused here: multiples of large numbers.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Collection
from decimal import Decimal, InvalidOperation, Overflow
from typing import Any, Final

import numpy as np

from nsllm.node.engine.distribution import Mask
from nsllm.node.engine.sampler import NoChoiceError
from nsllm.node.engine.tools import SCHEMA_SPACE, lark_text
from nsllm.record import Guide

KEPT_GUIDES: Final = 32
"""Compiled ones that are kept for the next request; typically 100 kB each."""
LIMITS: Final[dict[str, Any]] = {
    "initial_lexer_fuel": 500_000,  # 10 ms
    "step_lexer_fuel": 100_000,  # 7 ms a token
    "step_max_items": 20_000,  # 1 ms a token
    "max_items_in_row": 1000,
    "max_lexer_states": 10_000,  # 20 MB
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
"""Half of llguidance's defaults, and a 25th of its states, which stay with a compiled guide."""
MOST_MULTIPLE: Final = 20_000
"""Product of all that numbers are to be multiples of; llguidance takes 1 s and more from 100,000 on."""
MOST_GBNF_CHARS: Final = 20_000
"""Of a grammar in llama.cpp's notation, which is read in Python."""
ASCII_CLASSES: Final = "d"
r"""Classes of a regular expression that mean ASCII: \d is what programs read as a number."""
MESSAGE_CHARS: Final = 300
_MULTIPLE: Final = re.compile(r'"multipleOf"\s*:\s*([-+.\deE]+)')
_ESCAPE: Final = re.compile(r"\\u([\da-fA-F]{4})")


class GuideError(ValueError):
    """A guide that cannot be kept; `param` names the request's field as OpenAI and vLLM call it."""

    def __init__(self, message: str, guide: Guide) -> None:
        super().__init__(message)
        self.param = "response_format" if guide.kind in {"json_object", "json_schema"} else "structured_outputs"


class GuideBook:
    """Compiles guides for one tokenizer, and keeps the last of them.

    Args:
        token_bytes: what each token spells, special ones in any words.
        encode: text to tokens, none added.
        vocabulary: number of token ids.
        special_token_ids: tokens that are no text.
        end_token_ids: any of them ends an answer; at least one.
    """

    def __init__(
        self,
        *,
        token_bytes: Callable[[int], bytes],
        encode: Callable[[str], list[int]],
        vocabulary: int,
        special_token_ids: Collection[int],
        end_token_ids: Collection[int],
    ) -> None:
        self._token_bytes = token_bytes
        self._encode = encode
        self._vocabulary = vocabulary
        self._special = sorted({*special_token_ids, *end_token_ids})
        self._ends = sorted(end_token_ids)
        self._tokenizer: Any = None
        self._known: OrderedDict[Guide, Any] = OrderedDict()

    def start(self, guide: Guide) -> GuideState:
        """For a new answer. The first one takes 0.1 s, another unknown one 1 ms, or half a second at the worst.

        Raises:
            GuideError: it cannot be read, holds what is not supported, can match nothing, or is beyond a limit; says
                what.
        """
        if guide in self._known:
            self._known.move_to_end(guide)
        else:
            self._known[guide] = self._compile(guide)
            if len(self._known) > KEPT_GUIDES:
                self._known.popitem(last=False)
        return GuideState(self._known[guide].deep_copy(), self._vocabulary)

    def _compile(self, guide: Guide) -> Any:
        import llguidance

        if not self._ends:
            raise GuideError("this model has no token that ends an answer, so it cannot be guided", guide)
        if self._tokenizer is None:
            words = _Words(
                tokens=[self._token_bytes(token) for token in range(self._vocabulary)],
                special=self._special,
                end=self._ends[0],
                encode=self._encode,
            )
            self._tokenizer = llguidance.LLTokenizer(
                llguidance.TokenizerWrapper(words), n_vocab=self._vocabulary, eos_token=self._ends
            )
        _check_multiples(guide)
        try:
            grammar = _grammar(guide)
        except ValueError as error:
            raise GuideError(_said(guide, str(error)), guide) from None
        matcher = llguidance.LLMatcher(
            self._tokenizer, grammar, log_level=0, limits=llguidance.LLParserLimits(**LIMITS)
        )
        if matcher.is_error():
            raise GuideError(_said(guide, matcher.get_error()), guide)
        return matcher


class GuideState:
    """One answer under its guide. At its end only an end token is left.

    Args:
        matcher: llguidance's, at the beginning.
        vocabulary: number of token ids.
    """

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._mask: Mask = np.zeros(-(-vocabulary // 32), dtype=np.uint32)
        self._address = self._mask.ctypes.data

    def mask(self) -> Mask:
        """Tokens that may come next, one bit each, lowest first; the same array every time.

        Raises:
            NoChoiceError: the guide is beyond its limits here.
        """
        self._matcher.unsafe_compute_mask_ptr(self._address, self._mask.nbytes)
        self._check()
        return self._mask

    def accept(self, token: int) -> None:
        """This token came.

        Raises:
            NoChoiceError: it must not, or the guide is beyond its limits here.
        """
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise NoChoiceError(f"the guide gave up: {self._matcher.get_error()[:MESSAGE_CHARS]}")


class _Words:
    """A tokenizer as llguidance's `TokenizerWrapper` takes it."""

    def __init__(
        self, *, tokens: list[bytes], special: list[int], end: int, encode: Callable[[str], list[int]]
    ) -> None:
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = end
        self.bos_token_id = None
        self._encode = encode

    def __call__(self, text: str | bytes) -> list[int]:
        """Text that has to come, as the model would cut it."""
        return self._encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


def _grammar(guide: Guide) -> str:
    """As llguidance reads it. Raises `ValueError`."""
    from llguidance import LLMatcher, regex_to_lark
    from llguidance.gbnf_to_lark import gbnf_to_lark, is_lark_syntax

    match guide.kind:
        case "json_object":
            return LLMatcher.grammar_from_json_schema(
                '{"type":"object"}', overrides={"whitespace_pattern": SCHEMA_SPACE}
            )
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(guide.text, overrides={"whitespace_pattern": SCHEMA_SPACE})
        case "regex":
            return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(guide.text, ASCII_CLASSES)}/")
        case "choice":
            choices = json.loads(guide.text)
            if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices) or not choices:
                raise ValueError("the choices are not a list of texts")
            return LLMatcher.grammar_from_lark("start: " + " | ".join(map(lark_text, choices)))
        case "grammar" if not is_lark_syntax(guide.text):  # llama.cpp's notation, which vLLM's users write as well
            if len(guide.text) > MOST_GBNF_CHARS:
                raise ValueError(f"{len(guide.text)} characters of GBNF, the limit is {MOST_GBNF_CHARS}")
            try:
                return LLMatcher.grammar_from_lark(gbnf_to_lark(guide.text))
            except Exception as error:  # noqa: BLE001 - it raises just that for what is wrong in the text
                raise ValueError(str(error) or "it is nested too deeply") from None
        case "grammar":
            return LLMatcher.grammar_from_lark(guide.text)


def _check_multiples(guide: Guide) -> None:
    text = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), guide.text)
    product = Decimal(1)
    for written in sorted(set(_MULTIPLE.findall(text))):
        try:
            _, digits, exponent = Decimal(written).normalize().as_tuple()
        except InvalidOperation:  # not a number: what reads the schema says so
            continue
        except Overflow:
            digits, exponent = (1,), len(str(MOST_MULTIPLE))
        assert isinstance(exponent, int)  # the pattern has neither infinity nor NaN
        product *= Decimal((0, digits, min(max(0, exponent), len(str(MOST_MULTIPLE)))))
    if product > MOST_MULTIPLE:
        raise GuideError(f"the guide asks for multiples of numbers beyond {MOST_MULTIPLE}, which is too much", guide)


def _said(guide: Guide, error: str) -> str:
    return f"the {guide.kind} cannot be kept: {' '.join(error.split())[:MESSAGE_CHARS]}"
