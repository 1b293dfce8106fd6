"""Metrics: what a scrape shows is what the peer is in."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("asked", [0, 1])
def test_a_scrape_reads_the_peers_state(on_stage, asked: int) -> None:
    async def play(stage) -> None:
        (peer,) = stage.peers
        for _ in range(asked):
            await stage.anchored(peer, await stage.ask(peer, "Why is glass clear?"))
            await stage.ask(peer, "Why is glass clear?")
        read = peer.parts.metrics.registry.get_sample_value
        assert read("nsllm_consensus_height") == peer.ledger.height
        assert read("nsllm_network_log_size") == asked
        assert read("nsllm_consensus_halted") == 0
        assert read("nsllm_cache_hits") == asked
        assert read("nsllm_num_requests_running", {"model_name": peer._world.engine.info().text.name}) == 0
        assert read("nsllm_events_total", {"kind": "answered"}) == (2 * asked or None)

    on_stage(play, peers=1)
