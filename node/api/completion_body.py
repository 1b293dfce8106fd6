"""The body of `POST /v1/completions`, and the commands that it asks of the peer."""

from __future__ import annotations

from typing import Any, Final

from nsllm.node.api.fields import circle, given_tokens, integer, model_name, refuse_unless
from nsllm.node.api.formats import guide
from nsllm.node.api.openai_errors import bad_request, unsupported
from nsllm.node.api.sampling_fields import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    SamplingFields,
    choices,
    prompt_logprobs,
    sampling,
)
from nsllm.node.chat import ChatCommand
from nsllm.record import MAX_TEXT_CHARS, Message

MAX_PROMPTS: Final = 32
DEFAULT_TOKENS: Final = 16
"""OpenAI's and vLLM's default of this endpoint."""
UNSERVED: Final = {
    "suffix": ("",),
    "prompt_embeds": (),
    "add_special_tokens": (True,),
}
"""Fields that are accepted only at these values, which change nothing."""


class CompletionBody(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    """Body of `POST /v1/completions`."""

    model: str
    prompt: str | list[Any]
    # served
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    """Answers that are generated for each prompt; those `n` are told whose tokens are likeliest on average."""
    # accepted only at the value that changes nothing
    suffix: str | None = None
    prompt_embeds: Any = None
    add_special_tokens: bool | None = None


def completion_commands(body: CompletionBody, client: str = "") -> tuple[ChatCommand, ...]:
    """`n` commands for each prompt, in the prompts' order.

    Raises:
        ApiError: 400 that names the field.
    """
    refuse_unless(UNSERVED, body)
    picks = picked_from(body)
    max_tokens = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    if prompt_alone(body):
        max_tokens = 1  # the least that a model generates; nobody sees it
    top_logprobs = integer("logprobs", body.logprobs, 0, MAX_TOP_LOGPROBS)
    asked = sampling(body, max_tokens)
    visibility, group = circle(body.visibility)
    if body.echo and body.truncate_prompt_tokens is not None:
        raise unsupported("echo", "'echo' of a prompt that is cut would not be what the model read")
    of_prompt = prompt_logprobs(body)
    told = [most for most in (of_prompt, top_logprobs if body.echo else None) if most is not None]
    commands: list[ChatCommand] = []
    prompts = _prompts(body.prompt)
    each, name = (body.n or 1, "n") if picks is None else (picks, "best_of")
    if len(prompts) * each > MAX_CHOICES:
        said = f"{len(prompts)} prompts with {name!r} {each} ask for more than {MAX_CHOICES} answers"
        raise bad_request(said, param=name)
    for prompt in prompts:
        text = prompt if isinstance(prompt, str) else ""
        command = ChatCommand(
            model=model_name(body.model),
            messages=(Message(role="user", content=text),),
            prompt_token_ids=() if isinstance(prompt, str) else prompt,
            sampling=asked,
            visibility="private" if prompt_alone(body) else visibility,
            group=group,
            form="text",
            guide=guide(body),
            # The best are found by their probabilities.
            top_logprobs=0 if picks is not None and top_logprobs is None else top_logprobs,
            prompt_logprobs=max(told, default=None),
            client=client,
            reuse=top_logprobs is None and not told and picks is None and not prompt_alone(body),
        )
        commands.extend(choices(body, command, each))
    return tuple(commands)


def prompt_alone(body: CompletionBody) -> bool:
    """Nothing but the prompt is told, as programs ask that measure how likely a text is."""
    return bool(body.echo) and body.max_tokens == 0


def picked_from(body: CompletionBody) -> int | None:
    """How many answers to a prompt the told ones are picked from; None: all that are generated are told.

    Raises:
        ApiError: 400, fewer than `n`, too many, or streamed.
    """
    count = 1 if body.n is None else body.n
    if body.best_of is None or body.best_of == count:
        return None
    if not count <= body.best_of <= MAX_CHOICES:
        said = f"'best_of' is {body.best_of}, it must be from 'n', {count}, to {MAX_CHOICES}"
        raise bad_request(said, param="best_of")
    if body.stream:
        raise bad_request("the best answers are known once all have ended: leave out 'stream'", param="best_of")
    return body.best_of


def _prompts(given: str | list[Any]) -> list[str | tuple[int, ...]]:
    """A text or several, tokens or several lists of them."""
    single = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
    prompts = [given] if single else given
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise bad_request(f"{len(prompts)} prompts, 1 to {MAX_PROMPTS} are allowed", param="prompt")
    return [_prompt(prompt, "prompt" if single else f"prompt[{index}]") for index, prompt in enumerate(prompts)]


def _prompt(given: Any, at: str) -> str | tuple[int, ...]:
    if isinstance(given, list):
        return given_tokens(given, at)
    if not isinstance(given, str):
        raise bad_request(f"expected a string, got {type(given).__name__}", param=at, code="invalid_type")
    if not 1 <= len(given) <= MAX_TEXT_CHARS:
        raise bad_request(f"a prompt of {len(given)} characters, 1 to {MAX_TEXT_CHARS} are allowed", param=at)
    return given
