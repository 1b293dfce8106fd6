"""Frames between peer and worker: any pieces in, whole messages out, nothing unbounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.content import Text
from nsllm.errors import EncodingError
from nsllm.node.engine import protocol
from nsllm.node.engine.protocol import Cancel, Embed, Generate, Judged, Ping, Tokens, frame, peer_reader, worker_reader
from nsllm.record import Message, Sampling


@given(st.lists(st.integers(1, 7), max_size=40))
def test_messages_survive_any_cutting(cuts):
    messages = [
        Generate(1, (Message(role="user", content="hé"),), Sampling(seed=-5, stop=("x",)), 512),
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
    messages = [Tokens(1, (5, 6), "hi"), Judged(2, ((-1.5, 3),))]
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
