"""A whole peer that is asked far more than it can judge: it refuses early, and finishes what it lets in."""

from __future__ import annotations

import trio

from nsllm.node.chat import ChatCommand, ChatFinished, ChatStarted
from nsllm.node.errors import OverloadedError
from nsllm.record import Message, Sampling
from nsllm.simulations.standin import StandInEngine

JUDGED_S = 2.0
LOAD_S = 150
MOST_WAIT_S = 30
"""`engine.max_wait_s` where nothing else is said."""


class Caller:
    """Listens to one answer."""

    def __init__(self):
        self.events = []

    def send_nowait(self, event):
        self.events.append(event)

    async def send(self, event):
        self.events.append(event)


def test_a_peer_in_overload_refuses_at_once_and_finishes_in_time_what_it_lets_in(on_stage, monkeypatch):
    likelihoods, judge = StandInEngine.likelihoods, trio.Lock()

    async def slowly(self, items, **limits):
        async with judge:
            await trio.sleep(JUDGED_S / 2)  # an answer is read twice
        return await likelihoods(self, items, **limits)

    async def play(stage):
        monkeypatch.setattr(StandInEngine, "likelihoods", slowly)
        (peer,) = stage.peers
        began_s, refused, broken, finished = trio.current_time(), [], [], []

        async def ask(number):
            caller, came_s = Caller(), trio.current_time()
            command = ChatCommand(
                model=peer.models()[0].name,
                messages=(Message(role="user", content=f"What is the name of river number {number}?"),),
                sampling=Sampling(),
                visibility="public",
                client="flood",
            )
            try:
                await peer.answer(command, caller)
            except OverloadedError as error:
                refused.append((trio.current_time() - came_s, error.retry_after_s))
                broken.extend(caller.events)
            else:
                assert isinstance(caller.events[0], ChatStarted)
                assert isinstance(caller.events[-1], ChatFinished)
                finished.append((came_s - began_s, trio.current_time() - came_s))

        async with trio.open_nursery() as nursery:
            for number in range(2 * LOAD_S):
                nursery.start_soon(ask, number)
                await trio.sleep(0.5)
        assert len(refused) + len(finished) == 2 * LOAD_S
        assert broken == []
        assert len(refused) > LOAD_S  # three of four are too many
        assert max(waited_s for waited_s, _ in refused) < 5
        assert all(1 <= seconds <= 60 for _, seconds in refused)
        assert max(stay_s for came_s, stay_s in finished if came_s > 60) < 1.5 * MOST_WAIT_S
        assert len(finished) > LOAD_S / (2 * JUDGED_S) / 2

    on_stage(play, peers=1)
