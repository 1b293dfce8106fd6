"""A real validator floods the others over libp2p: they go on certifying, and neither memory nor logs run away."""

from __future__ import annotations

import time

import psutil
import pytest

pytestmark = [pytest.mark.process, pytest.mark.long, pytest.mark.timeout(1800)]

FLOODER = 3
HONEST = (0, 1, 2)
MEMORY_MB = 150
"""More than that none may need; what waits for one sender is bounded by 4 MB, and frames by 2 MB each."""
LOG_MB = 4


def test_junk_far_rounds_and_oversized_frames(lay_out_tiny, tiny_models, tmp_path) -> None:
    net = lay_out_tiny(tmp_path / "net", tiny_models, peers=4, first_port=24000)
    tap = tmp_path / "tap"
    tap.touch()
    asked, slowest_s = 0, 0.0

    def certify() -> None:
        nonlocal asked, slowest_s
        asked += 1
        began = time.monotonic()
        answer = net.ask(HONEST[asked % 3], f"What is {asked} plus {asked}?")
        net.receipt(HONEST[asked % 3], answer["id"])
        slowest_s = max(slowest_s, time.monotonic() - began)

    def memory_mb() -> list[float]:
        return [psutil.Process(net.processes[index].pid).memory_info().rss / 2**20 for index in HONEST]

    def log_mb() -> list[float]:
        return [net.places[index].log.stat().st_size / 2**20 for index in HONEST]

    try:
        for index in HONEST:
            net.start(index)
        net.until_ready(*HONEST)
        certify()
        before, most, logs = memory_mb(), memory_mb(), log_mb()
        flooder = net.start(FLOODER, faulty=("flooding", "1", "1", str(tap)))
        rounds = 0
        while "flooded 3" not in tap.read_text():
            assert flooder.poll() is None, net.tail(FLOODER)
            certify()
            rounds += 1
            most = [max(one, other) for one, other in zip(most, memory_mb(), strict=True)]
        certify()
        net.until_level(*HONEST)
        grown = [now - then for now, then in zip(most, before, strict=True)]
        written = [now - then for now, then in zip(log_mb(), logs, strict=True)]
        print(f"certified {rounds} meanwhile, slowest {slowest_s:.1f} s; memory +{grown} MB, logs +{written} MB")
        assert rounds >= 2, "it decides while the flood goes on"
        assert max(grown) < MEMORY_MB
        assert max(written) < LOG_MB
        for index in HONEST:
            assert net.status(index)["consensus"]["offences"] == []
            assert "event=peer_fault" in net.log(index), "the flood has arrived"
            assert "event=halted" not in net.log(index)
    finally:
        for index in tuple(net.processes):
            net.kill(index)
