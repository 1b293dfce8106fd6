"""The prompt: which tokens a model reads of a request. One definition, for generators and for whoever checks them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from nsllm.node.engine.backend import Backend, Eyes, TemplateError, TokenError, given_tokens
from nsllm.node.engine.port import EngineRequest
from nsllm.record import Sampling


class PromptError(ValueError):
    """A request without a prompt that this model reads.

    Args:
        said: why.
        param: the request's field that is at fault.
        kind: `overflow`: it is too long.
    """

    def __init__(self, said: str, *, param: str = "messages", kind: Literal["invalid", "overflow"] = "invalid") -> None:
        super().__init__(said)
        self.param = param
        self.kind = kind


def prompt_tokens(backend: Backend, request: EngineRequest, max_tokens: int) -> list[int]:
    """The tokens that a generation begins with; one at least remains to be written in the model's context.

    Args:
        backend: the model.
        request: what is asked.
        max_tokens: of the answer.

    Raises:
        PromptError: too long, not to be cut or told of as it is asked for, not of the model, or refused by a template.
    """
    context, most = backend.context_tokens, request.sampling.truncate_prompt_tokens
    check_tokens(backend, request.prompt_token_ids)
    if request.images and request.prompt_logprobs is not None:
        raise PromptError("nothing is told of the tokens of a prompt with pictures", param="prompt_logprobs")
    if most is None:
        chars = _chars(request)
        if chars > context * backend.longest_token_chars:
            raise _overflow(f"at least {chars // backend.longest_token_chars}", context)
    elif request.images:
        raise PromptError("a prompt with pictures cannot be truncated", param="truncate_prompt_tokens")
    elif most > context:
        said = f"'truncate_prompt_tokens' is {most}, this model's context is {context} tokens"
        raise PromptError(said, param="truncate_prompt_tokens")
    prompt = truncated(whole_prompt(backend, request), request.sampling, context, max_tokens)
    if len(prompt) + 1 > context:
        raise _overflow(str(len(prompt)), context)
    return prompt


def whole_prompt(backend: Backend, request: EngineRequest, *, special: bool = True) -> list[int]:
    """All tokens of a request's prompt, whether they fit the model's context or not.

    Args:
        backend: the model.
        request: what is asked.
        special: of a text, with the tokens that the tokenizer puts before one.

    Raises:
        PromptError: the model's template refuses the conversation.
    """
    if request.prompt_token_ids:
        return list(request.prompt_token_ids)
    if request.form == "text":
        text = request.messages[0].content
        return backend.text_tokens(text) if special else backend.tokens(text)
    try:
        if not request.images:
            return backend.chat_tokens(request.messages, tools=request.tools, rendering=request.rendering)
        if isinstance(backend, Eyes):
            return backend.picture_tokens(request.messages, request.images, rendering=request.rendering)
    except TemplateError as error:
        raise PromptError(str(error)) from None
    raise PromptError("this model takes no pictures")


def check_tokens(backend: Backend, token_ids: Sequence[int], param: str = "prompt_token_ids") -> None:
    """Pass silently if all of them are tokens of the model.

    Args:
        backend: the model.
        token_ids: that a request names.
        param: where.

    Raises:
        PromptError: one is not; names it.
    """
    try:
        given_tokens(token_ids, backend.vocabulary)
    except TokenError as error:
        raise PromptError(str(error), param=param) from None


def spelled(backend: Backend, token_ids: Sequence[int]) -> str:
    """The text of tokens, special ones left out; what is no character shows as U+FFFD."""
    decoder = backend.spelling.decoder()
    return "".join(map(decoder.push, token_ids)) + decoder.finish()


def truncated(prompt: list[int], sampling: Sampling, context_tokens: int, max_tokens: int) -> list[int]:
    """The last tokens of a prompt, as `truncate_prompt_tokens` says; all of them where it says nothing.

    Args:
        prompt: with the template's tokens, which are cut off like any others.
        sampling: says how many tokens are kept at most; 0: what the context holds beside the answer.
        context_tokens: of the model.
        max_tokens: of the answer. What was asked for and what a generation was given in the end lead to the same
            tokens: the second is less only where the context ends before it.

    >>> truncated([1, 2, 3, 4], Sampling(truncate_prompt_tokens=3), 100, 10)
    [2, 3, 4]
    >>> truncated([1, 2, 3, 4], Sampling(truncate_prompt_tokens=0), 12, 10)
    [3, 4]
    """
    most = sampling.truncate_prompt_tokens
    if most is None:
        return prompt
    return prompt[-(most or max(1, context_tokens - max_tokens)) :]


def _overflow(tokens: str, context_tokens: int) -> PromptError:
    said = f"the conversation is {tokens} tokens long, this model's context is {context_tokens} tokens, answer included"
    return PromptError(said, kind="overflow")


def _chars(request: EngineRequest) -> int:
    """Characters that the prompt holds at least."""
    turns = sum(len(turn.content) + sum(len(call.arguments) for call in turn.tool_calls) for turn in request.messages)
    return turns + sum(len(tool.description) + len(tool.parameters) for tool in request.tools)
