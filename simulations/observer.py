"""Looking on at real peers: their heights and what they send, read from their own metrics, for a report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import httpx
import trio
from prometheus_client.parser import text_string_to_metric_families

from nsllm.simulations.timeline import Timeline

EACH_S: Final = 1.0
ANSWER_S: Final = 5.0
HEIGHT: Final = "nsllm_consensus_height"
SENT: Final = "nsllm_p2p_messages_sent_total"
ANNOUNCED: Final = "nsllm_p2p_announcements_total"


class Observer:
    """Fills a timeline until cancelled."""

    def __init__(self, urls: Iterable[str], client: httpx.AsyncClient, timeline: Timeline, began_s: float) -> None:
        """Nothing was read yet.

        Args:
            urls: of the peers' APIs.
            client: to ask over.
            timeline: to fill.
            began_s: its zero, on trio's clock.
        """
        self._urls = tuple(urls)
        self._client = client
        self._timeline = timeline
        self._began_s = began_s
        self._counted: dict[tuple[int, str], int] = {}
        self._heights: dict[int, int] = {}

    async def run(self) -> None:
        """Read every peer's metrics again and again; who does not answer is passed over."""
        while True:
            async with trio.open_nursery() as nursery:
                for index, url in enumerate(self._urls):
                    nursery.start_soon(self._read, index, url)
                await trio.sleep(EACH_S)

    async def _read(self, index: int, url: str) -> None:
        try:
            answer = await self._client.get(f"{url}/metrics", timeout=ANSWER_S)
        except httpx.HTTPError:
            return
        if answer.status_code == 200:
            self.take(index, answer.text)

    def take(self, index: int, metrics: str) -> None:
        """What a peer's metrics say now."""
        at_s = trio.current_time() - self._began_s
        for family in text_string_to_metric_families(metrics):
            for sample in family.samples:
                if sample.name == HEIGHT and self._heights.get(index) != int(sample.value):
                    self._heights[index] = int(sample.value)
                    self._timeline.heights.append((at_s, index, int(sample.value)))
                elif sample.name == SENT:
                    self._count(at_s, index, sample.labels["protocol"].split("/")[2], int(sample.value))
                elif sample.name == ANNOUNCED and sample.labels["direction"] == "published":
                    self._count(at_s, index, "gossip", int(sample.value))

    def _count(self, at_s: float, index: int, protocol: str, total: int) -> None:
        """A counter that fell began anew: its peer was started again."""
        known = self._counted.get((index, protocol), 0)
        self._counted[index, protocol] = total
        more = total - known if total >= known else total
        if more:
            self._timeline.count(at_s, protocol, more)
