"""Frames between peer and worker: any pieces in, whole messages out, nothing unbounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.content import Text
from nsllm.errors import EncodingError
from nsllm.governance.ports import Likelihood, Trace
from nsllm.node.engine import protocol
from nsllm.node.engine.port import EngineRequest, TokenLogprob
from nsllm.node.engine.protocol import (
    Cancel,
    Embed,
    Gain,
    Generate,
    Judged,
    Load,
    Ping,
    Refused,
    Retraced,
    Step,
    frame,
    peer_reader,
    worker_reader,
)
from nsllm.record import Guide, Message, Sampling, Tool, ToolCall

EVERYTHING = EngineRequest(
    messages=(
        Message(role="user", content="hé"),
        Message(role="assistant", content="", tool_calls=(ToolCall(id="c", name="f", arguments="{}"),)),
        Message(role="tool", content="5", tool_call_id="c"),
    ),
    sampling=Sampling(seed=-5, stop=("x",), logit_bias=((4, -3),), min_p_micro=1),
    form="text",
    tools=(Tool(name="f", parameters='{"type":"object"}'),),
    guide=Guide(kind="regex", text="a+"),
    images=(b"\x89PNG", b""),
    top_logprobs=3,
    client="203.0.113.9",
)
"""Every field set, none as it is when it is not."""


@given(st.lists(st.integers(1, 7), max_size=40))
def test_messages_survive_any_cutting(cuts):
    messages = [
        Generate(1, EVERYTHING, 512),
        Embed(2, ("a", "b")),
        Cancel(1),
        Ping(),
    ]
    data = b"".join(frame(message) for message in messages)
    reader, got = worker_reader(), []
    for size in cuts:
        got += reader.feed(data[:size])
        data = data[size:]
    assert got + reader.feed(data) == messages


def test_what_a_worker_says_survives_too():
    told = TokenLogprob(b"\xf0", -1.5, ((b"a", -0.5), (b"\xf0", -1.5)))
    gains = (Gain(1, (5, 6), "hi"), Gain(3, (7,), "", "stop", (told,)))
    load = Load(0.02, 9, 2, 0, 7, 40, 32, 5, 100)
    messages = [
        Step(gains, load),
        Judged(2, ((-1.5, 3, -1.25),)),
        Retraced(3, Trace(0, fault="text", likelihood=Likelihood(-1.0, 2, -0.5))),
        Refused(1, "failed", "no", "guide"),
    ]
    assert peer_reader().feed(b"".join(map(frame, messages))) == messages


def test_guarded_text_goes_over_as_text():
    (message,) = worker_reader().feed(frame(Embed(1, (Text("secret"),))))
    assert message == Embed(1, ("secret",))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x40\x00\x00\x00", "claims 1073741824 bytes"),
        (b"\x00\x00\x00\x01\xc1", "no message"),
        (frame(Ping()), "no message"),  # a peer's message is none of a worker's
    ],
)
def test_bad_frames_are_refused(data, said):
    with pytest.raises(EncodingError, match=said):
        peer_reader().feed(data)


def test_a_message_beyond_the_limit_is_not_sent(monkeypatch):
    monkeypatch.setattr(protocol, "MAX_FRAME_BYTES", 100)
    with pytest.raises(EncodingError, match="limit is 100"):
        frame(Embed(1, ("a" * 200,)))
