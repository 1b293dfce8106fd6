"""Fields that chat completions and completions share: how tokens are chosen, how many answers, who may see them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Final, Literal

import msgspec
from msgspec import Struct

from nsllm.node.api.fields import (
    bad_words,
    integer,
    logit_bias,
    micro,
    prompt_limit,
    refuse_unless,
    stops,
    token_ids,
)
from nsllm.node.api.formats import FormatFields
from nsllm.node.api.openai_errors import bad_request
from nsllm.node.api.reply import ToldUsage
from nsllm.node.chat import ChatCommand
from nsllm.node.engine.declared import MOST_PENALTY, MOST_TEMPERATURE
from nsllm.record import MAX_STOP_TOKENS, Sampling

Reuse = Literal["semantic", "exact", "none"]
"""What of the cache may stand in: answers to like questions too, exact repeats only, or nothing."""
MAX_CHOICES: Final = 128
"""OpenAI's limit; of all answers of a request, as many prompts as it may have."""
MAX_TOKENS: Final = 1_000_000
MAX_TOP_LOGPROBS: Final = 20
"""OpenAI's limit of chats, and vLLM's; OpenAI's of completions is 5."""
UNSERVED: Final = {
    "store": (False,),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "allowed_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "return_tokens_as_token_ids": (False,),
    "logits_processors": ([],),
    "kv_transfer_params": (),
    "vllm_xargs": ({},),
}
"""Fields that are accepted only at these values, which change nothing."""


class StreamOptions(Struct, forbid_unknown_fields=True):
    """`stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Accepted; this peer never obfuscates."""
    continuous_usage_stats: bool | None = None
    """vLLM's: with `include_usage`, usage so far in every chunk."""


class SamplingFields(FormatFields, forbid_unknown_fields=True, kw_only=True):
    """OpenAI's fields of both endpoints, and vLLM's further ones."""

    # served
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    truncate_prompt_tokens: int | None = None
    return_token_ids: bool | None = None
    prompt_logprobs: int | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    visibility: str | None = None
    """`private`, `public`, `group`, or `group:NAME`."""
    reuse: Reuse | None = None
    max_wrong_rate: float | None = None
    # accepted only at the value that changes nothing
    store: bool | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    """Of beam search."""
    allowed_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    logits_processors: list[object] | None = None
    kv_transfer_params: dict[str, object] | None = None
    vllm_xargs: dict[str, object] | None = None
    # accepted and not used: they are about accounts, billing and queues, never about the answer
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    cache_salt: str | None = None
    priority: int | None = None
    request_id: str | None = None

    def told_usage(self) -> ToldUsage:
        """How a stream counts tokens."""
        asked = self.stream_options
        if asked is None or not asked.include_usage:
            return "never"
        return "always" if asked.continuous_usage_stats else "last"


def sampling(body: SamplingFields, max_tokens: int | None, limit_name: str = "max_tokens") -> Sampling:
    """The body's sampling parameters, those that it leaves open as None.

    Args:
        body: the fields.
        max_tokens: longest answer that is asked for.
        limit_name: the field that says so.

    Raises:
        ApiError: 400 that names the field.
    """
    refuse_unless(UNSERVED, body)
    if body.stream_options is not None and not body.stream:
        raise bad_request("'stream_options' needs 'stream': true", param="stream_options")
    integer(limit_name, max_tokens, 1, MAX_TOKENS)
    min_tokens = integer("min_tokens", body.min_tokens, 0, MAX_TOKENS)
    if body.ignore_eos:
        if max_tokens is None:
            raise bad_request(f"'ignore_eos' needs {limit_name!r}: the answer ends nowhere else", param="ignore_eos")
        min_tokens = max_tokens
    if min_tokens is not None and max_tokens is not None and min_tokens > max_tokens:
        raise bad_request(f"'min_tokens' is {min_tokens}, more than {limit_name!r}", param="min_tokens")
    return Sampling(
        temperature_micro=micro("temperature", body.temperature, 0, MOST_TEMPERATURE),
        top_p_micro=micro("top_p", body.top_p, 0, 1, open_below=True),
        top_k=integer("top_k", 0 if body.top_k == -1 else body.top_k, 0, 1_000_000),  # -1: vLLM's "all tokens"
        min_p_micro=micro("min_p", body.min_p, 0, 1),
        repetition_penalty_micro=micro("repetition_penalty", body.repetition_penalty, 0, MOST_PENALTY, open_below=True),
        # No model card has values of these three: zero says no more than nothing.
        presence_penalty_micro=micro("presence_penalty", body.presence_penalty, -MOST_PENALTY, MOST_PENALTY) or None,
        frequency_penalty_micro=micro("frequency_penalty", body.frequency_penalty, -MOST_PENALTY, MOST_PENALTY) or None,
        logit_bias=logit_bias(body.logit_bias),
        seed=integer("seed", body.seed, -(2**63), 2**63 - 1),
        max_tokens=max_tokens,
        min_tokens=min_tokens or None,
        stop=stops(body.stop),
        stop_token_ids=token_ids("stop_token_ids", body.stop_token_ids, MAX_STOP_TOKENS),
        bad_words=bad_words(body.bad_words),
        truncate_prompt_tokens=prompt_limit(body.truncate_prompt_tokens, MAX_TOKENS),
    )


def prompt_logprobs(body: SamplingFields) -> int | None:
    """Alternatives to tell with each token of the prompt; None: nothing is told of it.

    Raises:
        ApiError: 400, out of bounds, or streamed, which vLLM does not serve either.
    """
    if body.prompt_logprobs is not None and body.stream:
        raise bad_request("'prompt_logprobs' is told in whole replies only", param="prompt_logprobs")
    return integer("prompt_logprobs", body.prompt_logprobs, 0, MAX_TOP_LOGPROBS)


def choices(body: SamplingFields, command: ChatCommand, generated: int | None = None) -> tuple[ChatCommand, ...]:
    """One command for each of the `n` answers.

    With a seed, the first uses it as given and the others seeds derived from it; several answers are always generated.

    Args:
        body: says `n`.
        command: what is asked.
        generated: answers, where more of them are generated than told.

    Raises:
        ApiError: 400, `n` out of bounds.
    """
    count = 1 if body.n is None else body.n
    if not 1 <= count <= MAX_CHOICES:
        raise bad_request(f"'n' is {count}, this peer makes 1 to {MAX_CHOICES} choices", param="n")
    count = generated or count
    reuse = command.reuse and count == 1 and body.reuse != "none"
    command = replace(
        command,
        reuse=reuse,
        # The tokens of a like question's prompt are not those of this one.
        semantic=reuse and body.reuse != "exact" and not body.return_token_ids and body.truncate_prompt_tokens is None,
        return_token_ids=bool(body.return_token_ids),
        max_wrong_ppm=micro("max_wrong_rate", body.max_wrong_rate, 0, 1),
    )
    return tuple(replace(command, sampling=_reseeded(command.sampling, i)) for i in range(count))


def _reseeded(given: Sampling, index: int) -> Sampling:
    if given.seed is None or index == 0:
        return given
    drawn = hashlib.sha256(f"nsllm choice {given.seed} {index}".encode()).digest()
    return msgspec.structs.replace(given, seed=int.from_bytes(drawn[:8], "big") >> 1)
