"""A prompt of tokens is its text's where they read alike, and both where they do not."""

from __future__ import annotations

import pytest

from nsllm.ids import Digest
from nsllm.node.chat import ChatCommand
from nsllm.node.engine.port import EngineInfo, ModelInfo
from nsllm.node.errors import InvalidRequestError, UnknownModelError
from nsllm.node.request_reader import RequestReader
from nsllm.record import MAX_TEXT_CHARS, Message, Sampling, request_key

MODEL = ModelInfo("m", Digest(bytes(32)), "none", 99, Sampling())
NETWORK = bytes(32)


class Letters:
    """One token a character, 1 before each text; 0 is no text."""

    def info(self):
        return EngineInfo(MODEL, MODEL, "ready", 0, 0, 0, None)

    async def tokenize(self, request, *, special):
        ids = tuple(map(ord, request.messages[0].content))
        return (1, *ids) if special else ids

    async def detokenize(self, token_ids, model):
        assert model == MODEL.digest
        if max(token_ids) >= 500:
            raise InvalidRequestError("no token", param="prompt_token_ids")
        return "".join(chr(token) * (40_000 if token == 499 else 1) for token in token_ids if token > 1)


@pytest.fixture
def reader():
    return RequestReader(Letters(), None)


def command(*token_ids, text=""):
    messages = (Message(role="user", content=text),)
    return ChatCommand("m", messages, Sampling(), None, form="text", prompt_token_ids=token_ids)


async def read(reader, asked):
    request, _ = await reader.read(asked, reader.named(asked.model))
    return request


async def test_tokens_that_their_text_reads_as_are_that_text(reader):
    tokens, text = await read(reader, command(1, 104, 105)), await read(reader, command(text="hi"))
    assert tokens == text
    assert tokens.prompt_token_ids == ()
    assert (await reader.tokenize(command(1, 104, 105), special=True)) == ((1, 104, 105), 99)


@pytest.mark.parametrize("token_ids", [(104, 105), (1, 104, 0, 105), (1, 1, 104, 105), (0,)])
async def test_other_tokens_of_the_same_text_have_a_key_of_their_own(reader, token_ids):
    tokens, text = await read(reader, command(*token_ids)), await read(reader, command(text="hi"))
    assert tokens.prompt_token_ids == token_ids
    assert tokens.messages[0].content == ("hi" if len(token_ids) > 1 else "")
    keys = {request_key(NETWORK, one) for one in (tokens, text, await read(reader, command(1, 104, 0, 0, 105)))}
    assert len(keys) == 3


async def test_what_cannot_be_read_is_named(reader):
    with pytest.raises(InvalidRequestError) as refused:
        await read(reader, command(1, 500))
    assert refused.value.param == "prompt_token_ids"
    with pytest.raises(InvalidRequestError, match=str(MAX_TEXT_CHARS)) as refused:
        await read(reader, command(499, 499, 499))
    assert refused.value.param == "prompt_token_ids"
    with pytest.raises(UnknownModelError):
        reader.named("other")
