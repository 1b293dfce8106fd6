"""Looking on at real peers: heights as they change, messages as they come, and a counter that begins anew."""

from __future__ import annotations

from typing import Any

import httpx
import trio
from prometheus_client import CollectorRegistry, generate_latest

from nsllm.node.metrics import PeerMetrics
from nsllm.p2p.traffic import Traffic
from nsllm.simulations.observer import Observer
from nsllm.simulations.timeline import Timeline


class Shown:
    """A peer's own metrics."""

    def __init__(self) -> None:
        self.height, self.traffic = 0, Traffic()
        metrics = PeerMetrics(CollectorRegistry())
        metrics.watch(
            height=lambda: self.height,
            halted=lambda: False,
            log_size=lambda: 0,
            connected=lambda: 0,
            engine=lambda: None,
            look_ups=lambda: (0, 0, 0),
            traffic=self.traffic,
        )
        self._registry = metrics.registry

    def text(self) -> str:
        names = ["nsllm_consensus_height", "nsllm_p2p_messages_sent_total", "nsllm_p2p_announcements_total"]
        return generate_latest(self._registry.restricted_registry(names)).decode()


async def test_what_peers_count_becomes_heights_and_messages(autojump_clock: Any) -> None:
    peer, timeline = Shown(), Timeline(2.0)
    observer = Observer(["http://a"], httpx.AsyncClient(), timeline, trio.current_time())
    observer.take(0, peer.text())
    peer.height, peer.traffic.published = 3, 2
    peer.traffic.of("/nsllm/mesh/1").messages = 5
    observer.take(0, peer.text())
    await trio.sleep(3)
    peer.traffic.of("/nsllm/mesh/1").messages = 9
    observer.take(0, peer.text())
    observer.take(0, peer.text())
    assert timeline.heights == [(0.0, 0, 0), (0.0, 0, 3)]
    assert timeline.by_protocol == {"mesh": 9, "gossip": 2}
    assert timeline.over_time == {0: {"mesh": 5, "gossip": 2}, 1: {"mesh": 4}}


async def test_a_peer_that_starts_again_counts_from_nothing(autojump_clock: Any) -> None:
    peer, timeline = Shown(), Timeline(2.0)
    observer = Observer(["http://a"], httpx.AsyncClient(), timeline, trio.current_time())
    peer.traffic.of("/nsllm/sync/1").messages = 7
    observer.take(0, peer.text())
    peer.traffic.of("/nsllm/sync/1").messages = 2
    observer.take(0, peer.text())
    assert timeline.by_protocol == {"sync": 9}


async def test_who_does_not_answer_is_passed_over(autojump_clock: Any) -> None:
    peer, timeline = Shown(), Timeline(2.0)
    peer.height = 4

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "gone":
            raise httpx.ConnectError("gone")
        return httpx.Response(200 if request.url.host == "here" else 503, text=peer.text())

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        urls = ["http://gone", "http://busy", "http://here"]
        with trio.move_on_after(2.5):
            await Observer(urls, client, timeline, trio.current_time()).run()
    assert timeline.heights == [(0.0, 2, 4)]
