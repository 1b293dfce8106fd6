"""What a caller asks, read: model names, attachments, and prompts of tokens with the text that they spell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nsllm.node.attachments.attend import Attended, attend
from nsllm.node.attachments.port import Describer
from nsllm.node.chat import ChatCommand
from nsllm.node.engine.port import Engine, EngineRequest, ModelInfo
from nsllm.node.errors import InvalidRequestError, UnknownModelError
from nsllm.record import MAX_TEXT_CHARS, Message, Request, Sampling


class RequestReader:
    """Makes canonical requests of commands.

    Args:
        engine: knows the models and their tokens.
        describer: looks at attachments.
    """

    def __init__(self, engine: Engine, describer: Describer) -> None:
        self._engine = engine
        self._describer = describer

    def named(self, name: str) -> ModelInfo:
        """The model that is called so.

        Raises:
            UnknownModelError: none is.
        """
        served = self._engine.info()
        model = served.named(name)
        if model is None:
            names = ", ".join(repr(row.model.name) for row in served.texts())
            raise UnknownModelError(
                f"model {name!r} is not served here", hint=f"this peer serves {names}", param="model"
            )
        return model

    async def read(self, command: ChatCommand, model: ModelInfo) -> tuple[Request, Attended]:
        """The request that a command makes of a model, and what became of its attachments.

        Raises:
            InvalidRequestError, OverloadedError: see `attend`; a prompt's tokens are not the model's, or not known.
            EngineError: the worker died.
        """
        messages, token_ids = command.messages, command.prompt_token_ids
        if token_ids:
            text, token_ids = await self._spelled(token_ids, model)
            messages = (Message(role="user", content=text),)
        attended = await attend(messages, command.attached, self._describer, sees=model.sees)
        request = Request(
            model=model.name,
            model_digest=model.digest,
            messages=attended.messages,
            sampling=command.sampling,
            form=command.form,
            prompt_token_ids=token_ids,
            tools=command.tools,
            guide=command.guide,
            rendering=command.rendering,
            attachments=attended.digests,
        )
        return request, attended

    async def tokenize(self, command: ChatCommand, *, special: bool) -> tuple[tuple[int, ...], int | None]:
        """Tokens of what is asked, see `nsllm.node.service.PeerService.tokenize`."""
        model = self.named(command.model)
        request, attended = await self.read(command, model)
        asked = replace(EngineRequest.of(request), images=attended.images)
        return await self._engine.tokenize(asked, special=special), model.context_tokens

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """Text of tokens, see `nsllm.node.service.PeerService.detokenize`."""
        return await self._engine.detokenize(token_ids, self.named(model).digest)

    async def token_strs(self, model: str, token_ids: Sequence[int]) -> tuple[str, ...]:
        """Tokens as the vocabulary writes them, see `nsllm.node.service.PeerService.token_strs`."""
        return await self._engine.token_strs(token_ids, self.named(model).digest)

    async def _spelled(self, token_ids: tuple[int, ...], model: ModelInfo) -> tuple[str, tuple[int, ...]]:
        """The text of a prompt that was given as tokens; with them, unless the text has the very same ones."""
        text = await self._engine.detokenize(token_ids, model.digest)
        if len(text) > MAX_TEXT_CHARS:
            said = f"the prompt's tokens spell {len(text)} characters, the limit is {MAX_TEXT_CHARS}"
            raise InvalidRequestError(said, param="prompt_token_ids")
        messages = (Message(role="user", content=text),)
        plain = EngineRequest(messages, Sampling(), form="text", model=model.digest)
        own = await self._engine.tokenize(plain, special=True)
        return text, () if own == token_ids else token_ids
