"""The body of `POST /v1/chat/completions`, and the commands that it asks of the peer.

Every field of OpenAI's chat API stands in it or in what it inherits: those served, those accepted because ignoring them
changes no answer (`user`, `metadata`, …), and those refused with a clear 400 because ignoring them would. Other fields
are unknown. Real numbers become integers in millionths at this edge and stay so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from nsllm.node.api.fields import circle, integer, model_name, refuse_unless
from nsllm.node.api.formats import guide
from nsllm.node.api.messages import ChatMessage, conversation
from nsllm.node.api.openai_errors import bad_request
from nsllm.node.api.parts import PartsReader
from nsllm.node.api.rendering_fields import rendering
from nsllm.node.api.sampling_fields import MAX_TOP_LOGPROBS, SamplingFields, choices, prompt_logprobs, sampling
from nsllm.node.api.tool_fields import SentTool, tooling
from nsllm.node.chat import ChatCommand
from nsllm.node.retrieval import MOST

UNSERVED: Final[dict[str, tuple[Any, ...]]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "echo": (False,),
    "add_special_tokens": (False,),
    "documents": ([],),
    "chat_template": (),
    "mm_processor_kwargs": ({},),
    "include_reasoning": (True,),
}
"""Fields that are accepted only at these values, which change nothing."""


class ChatBody(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    """Body of `POST /v1/chat/completions`."""

    model: str
    messages: list[ChatMessage]
    # served
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[SentTool] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    retrieve: bool | int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # accepted only at the value that changes nothing
    functions: list[Any] | None = None
    function_call: Any = None
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    web_search_options: Any = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    documents: list[Any] | None = None
    chat_template: str | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    include_reasoning: bool | None = None


def chat_commands(body: ChatBody, client: str = "") -> tuple[ChatCommand, ...]:
    """One command for each of the `n` choices.

    Raises:
        ApiError, InvalidRequestError: 400 that names the field.
    """
    refuse_unless(UNSERVED, body)
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise bad_request("'max_tokens' and 'max_completion_tokens' differ; send one", param="max_completion_tokens")
    limit_name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    tools = tooling(body.tools, body.tool_choice, parallel=body.parallel_tool_calls)
    format_guide = guide(body)
    if tools.guide is not None and format_guide is not None:
        raise bad_request("a forced tool call has a format of its own", param="tool_choice")
    top_logprobs, of_prompt = _top_logprobs(body), prompt_logprobs(body)
    reader = PartsReader()
    visibility, group = circle(body.visibility)
    messages = conversation(body.messages, reader)
    command = ChatCommand(
        model=model_name(body.model),
        messages=messages,
        attached=reader.attached,
        sampling=sampling(body, next(iter(limits), None), limit_name),
        visibility=visibility,
        group=group,
        tools=tools.tools,
        guide=tools.guide or format_guide,
        rendering=rendering(body, messages),
        top_logprobs=top_logprobs,
        client=client,
        retrieve=_retrieve(body.retrieve),
        reuse=top_logprobs is None and of_prompt is None,
    )
    first, *others = choices(body, command)  # they have one prompt
    return replace(first, prompt_logprobs=of_prompt), *others


def _retrieve(sent: bool | int | None) -> bool | int | None:
    """How many passages: True is a few, False none."""
    return sent if sent is None or isinstance(sent, bool) else integer("retrieve", sent, 0, MOST)


def _top_logprobs(body: ChatBody) -> int | None:
    """Alternatives to tell with each token; None: no log-probabilities."""
    if not body.logprobs:
        if body.top_logprobs:
            raise bad_request("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
        return None
    return integer("top_logprobs", body.top_logprobs or 0, 0, MAX_TOP_LOGPROBS)
