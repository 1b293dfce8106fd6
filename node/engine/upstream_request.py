"""What an OpenAI-compatible server is asked: one generation as the body of a POST, as each kind of server spells it.

What a server has no word for is refused, never left out: an answer to something else would be wrong.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from nsllm.node.engine.port import EngineRequest
from nsllm.node.engine.tools import forced_choice, tool_schema
from nsllm.node.errors import InvalidRequestError
from nsllm.record import Guide, Message, Rendering, Sampling

MICRO: Final = 1_000_000
LLAMA_CPP: Final = frozenset({"llamacpp", "me"})
"""How llama-server and llama-cpp-python's server call the owner of a model."""
STRUCTURED: Final = frozenset({"vllm", "nsllm"})
"""Owners whose servers take `structured_outputs`, `bad_words` and `truncate_prompt_tokens`."""
STOP_TOKENS: Final = frozenset({*STRUCTURED, "sglang"})
"""Owners whose servers take `stop_token_ids`; others may pass over what they do not know."""
RENDERING: Final = STRUCTURED
"""Owners whose servers take `chat_template_kwargs` and `continue_final_message`."""
_LARK: Final = re.compile(r"(?m)^\s*(%llguidance\b|start\s*:)")

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Post:
    """What is sent."""

    path: str
    """After the `/v1` of the server's address."""
    body: bytes


def make_post(model: str, request: EngineRequest, owner: str | None) -> Post:
    """Parameters that are unset stay out, so the upstream's own defaults hold for them.

    Args:
        model: as the upstream lists it.
        request: `max_tokens` set.
        owner: what `/v1/models` says of the model's owner: servers spell some parameters differently.

    Raises:
        InvalidRequestError: the upstream has no way to do what is asked; names the parameter.
    """
    if request.images:
        raise InvalidRequestError("pictures are not passed to the upstream", param="messages")
    if request.prompt_token_ids:
        raise InvalidRequestError(
            "tokens are not passed to the upstream, whose tokenizer is not at hand here",
            param="prompt_token_ids",
            hint="send text",
        )
    if request.prompt_logprobs is not None:
        raise InvalidRequestError("the upstream tells no probabilities of prompts", param="prompt_logprobs")
    body: Body = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    if request.form == "text":
        body["prompt"] = request.messages[0].content
        if request.top_logprobs is not None:
            raise InvalidRequestError("the upstream tells no probabilities of text prompts", param="logprobs")
    else:
        body["messages"] = [_message(message) for message in request.messages]
        if request.top_logprobs is not None:
            body["logprobs"] = True
            body["top_logprobs"] = request.top_logprobs
    body |= _sampling(request.sampling, owner) | _tools(request) | _guide(request, owner)
    body |= _rendering(request.rendering, owner)
    if owner == "nsllm":
        body["visibility"] = "private"  # who publishes an answer is decided here, never by what computes it
    path = "/completions" if request.form == "text" else "/chat/completions"
    return Post(path, msgspec.json.encode(body))


def _message(message: Message) -> Body:
    turn: Body = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _sampling(sampling: Sampling, owner: str | None) -> Body:
    micro = {
        "temperature": sampling.temperature_micro,
        "top_p": sampling.top_p_micro,
        "min_p": sampling.min_p_micro,
        "presence_penalty": sampling.presence_penalty_micro,
        "frequency_penalty": sampling.frequency_penalty_micro,
        "repeat_penalty" if owner in LLAMA_CPP else "repetition_penalty": sampling.repetition_penalty_micro,
    }
    body: Body = {name: value / MICRO for name, value in micro.items() if value is not None}
    if sampling.top_k is not None:
        # Off is 0 in our words and at a peer; llama-cpp-python refuses -1, which vLLM and SGLang want.
        body["top_k"] = -1 if sampling.top_k == 0 and owner not in {*LLAMA_CPP, "nsllm"} else sampling.top_k
    whole = {"seed": sampling.seed, "max_tokens": sampling.max_tokens, "min_tokens": sampling.min_tokens}
    body |= {name: value for name, value in whole.items() if value is not None}
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias / MICRO for token, bias in sampling.logit_bias}
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.stop_token_ids:
        if owner not in STOP_TOKENS:
            raise InvalidRequestError("the upstream takes no tokens that end an answer", param="stop_token_ids")
        body["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.bad_words:
        if owner not in STRUCTURED:
            raise InvalidRequestError("the upstream takes no words that an answer must not hold", param="bad_words")
        body["bad_words"] = list(sampling.bad_words)
    if sampling.truncate_prompt_tokens is not None:
        if owner not in STRUCTURED:
            raise InvalidRequestError("the upstream truncates no prompts", param="truncate_prompt_tokens")
        body["truncate_prompt_tokens"] = sampling.truncate_prompt_tokens or -1
    return body


def _rendering(rendering: Rendering | None, owner: str | None) -> Body:
    if rendering is None:
        return {}
    body: Body = {}
    if rendering.options:
        body["chat_template_kwargs"] = rendering.values()
    if rendering.continues:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    if owner not in RENDERING:
        raise InvalidRequestError("the upstream's chat template is not ours to direct", param=next(iter(body)))
    return body


def _tools(request: EngineRequest) -> Body:
    if not request.tools:
        return {}
    functions = [
        {"name": tool.name, "description": tool.description, "parameters": tool_schema(tool)} for tool in request.tools
    ]
    body: Body = {"tools": [{"type": "function", "function": function} for function in functions]}
    forced = forced_choice(request.guide, request.tools)
    if forced is not None:
        name, parallel = forced
        body["tool_choice"] = "required" if name is None else {"type": "function", "function": {"name": name}}
        if not parallel:
            body["parallel_tool_calls"] = False
    return body


def _guide(request: EngineRequest, owner: str | None) -> Body:
    guide = request.guide
    if guide is None or forced_choice(guide, request.tools) is not None:
        return {}
    if guide.kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if guide.kind == "json_schema":
        schema = _value(guide, dict)
        if owner in LLAMA_CPP:
            return {"response_format": {"type": "json_object", "schema": schema}}
        told = {"name": "answer", "schema": schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": told}}
    if owner in STRUCTURED:
        value = _value(guide, list) if guide.kind == "choice" else guide.text
        return {"structured_outputs": {guide.kind: value}}
    body = _spelled(guide, owner)
    if body is None:
        raise InvalidRequestError(
            f"the upstream takes no {guide.kind} that an answer must match", param="structured_outputs"
        )
    return body


def _spelled(guide: Guide, owner: str | None) -> Body | None:
    """A guide for a server that takes some kinds only; None if it does not take this one."""
    choices = _value(guide, list) if guide.kind == "choice" else []
    notation = None if guide.kind != "grammar" or _LARK.search(guide.text) else guide.text
    if choices:
        notation = "root ::= " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    if owner in LLAMA_CPP and notation is not None:
        return {"grammar": notation}
    if owner == "sglang" and guide.kind == "regex":
        return {"regex": guide.text}
    if owner == "sglang" and notation is not None:
        return {"ebnf": notation}
    return None


def _value(guide: Guide, kind: type) -> Any:
    """The JSON that a guide's text is."""
    try:
        value = json.loads(guide.text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        param = "response_format" if guide.kind == "json_schema" else "structured_outputs"
        raise InvalidRequestError(f"the {guide.kind} is not the JSON that it has to be", param=param)
    return value
