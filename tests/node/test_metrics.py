"""Metrics: what a scrape shows is what the peer is in."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from nsllm.node.metrics import PeerMetrics


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
        assert read("nsllm_cache_hits_total") == asked
        assert read("nsllm_num_requests_running", {"model_name": peer._world.engine.info().text.name}) == 0
        assert read("nsllm_events_total", {"kind": "answered"}) == (2 * asked or None)

    on_stage(play, peers=1)


def test_what_only_grows_is_a_counter_and_units_are_prometheus_own():
    families = list(PeerMetrics(CollectorRegistry()).registry.collect())
    assert len(families) > 20
    for family in families:
        assert family.documentation
        assert not family.name.endswith(("_ms", "_mb", "_ppm", "_micro")), family.name
        assert family.type == "counter" or "so far" not in family.documentation, family.name
    counters = {family.name for family in families if family.type == "counter"}
    assert {"nsllm_cache_hits", "nsllm_cache_misses", "nsllm_cache_refused", "nsllm_engine_restarts"} <= counters
