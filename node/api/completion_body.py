"""The body of `POST /v1/completions`, and the commands that it asks of the peer."""

from __future__ import annotations

from typing import Any, Final

from nsllm.node.api.fields import circle, integer, model_name, refuse_unless
from nsllm.node.api.formats import guide
from nsllm.node.api.openai_errors import bad_request, unsupported
from nsllm.node.api.sampling_fields import MAX_CHOICES, SamplingFields, choices, sampling
from nsllm.node.service import ChatCommand
from nsllm.record import MAX_TEXT_CHARS, Message

MAX_LOGPROBS: Final = 20
"""OpenAI's limit is 5, vLLM's 20."""
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
    """Only as many as `n`: this peer picks no best."""
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
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise unsupported("best_of", "'best_of' is not supported; ask for 'n' answers")
    max_tokens = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    top_logprobs = integer("logprobs", body.logprobs, 0, MAX_LOGPROBS)
    asked = sampling(body, max_tokens)
    visibility, group = circle(body.visibility)
    if body.echo and top_logprobs is not None:
        said = "'echo' tells no log-probabilities of the prompt: leave out one of 'echo' and 'logprobs'"
        raise unsupported("echo", said)
    commands: list[ChatCommand] = []
    prompts = _prompts(body.prompt)
    if len(prompts) * (body.n or 1) > MAX_CHOICES:
        said = f"{len(prompts)} prompts with 'n' {body.n} ask for more than {MAX_CHOICES} answers"
        raise bad_request(said, param="n")
    for prompt in prompts:
        command = ChatCommand(
            model=model_name(body.model),
            messages=(Message(role="user", content=prompt),),
            sampling=asked,
            visibility=visibility,
            group=group,
            form="text",
            guide=guide(body),
            top_logprobs=top_logprobs,
            client=client,
            reuse=top_logprobs is None,
        )
        commands.extend(choices(body, command))
    return tuple(commands)


def _prompts(given: str | list[Any]) -> list[str]:
    prompts = [given] if isinstance(given, str) else given
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise bad_request(f"{len(prompts)} prompts, 1 to {MAX_PROMPTS} are allowed", param="prompt")
    for index, prompt in enumerate(prompts):
        at = "prompt" if isinstance(given, str) else f"prompt[{index}]"
        if isinstance(prompt, int | list) and not isinstance(prompt, bool):
            raise unsupported("prompt", "token ids are not supported: send text, or ask POST /detokenize for it")
        if not isinstance(prompt, str):
            raise bad_request(f"expected a string, got {type(prompt).__name__}", param=at, code="invalid_type")
        if not 1 <= len(prompt) <= MAX_TEXT_CHARS:
            raise bad_request(f"a prompt of {len(prompt)} characters, 1 to {MAX_TEXT_CHARS} are allowed", param=at)
    return prompts
