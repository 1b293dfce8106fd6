"""A real peer that is 1,000 heights behind, while one of those that it asks lies: it gets there, and drops the liar.

The heights are made in this process, by the validators' keys; then peers start on folders that hold them.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import trio
from ledgers import LedgerNetwork

from nsllm.clock import SystemClock
from nsllm.governance.genesis import Genesis, load_genesis
from nsllm.ids import Address, Round
from nsllm.node.identity import open_identity
from nsllm.node.settings import load_config, save_config
from nsllm.simulations.inspection import inspect

pytestmark = [pytest.mark.process, pytest.mark.long, pytest.mark.timeout(900)]

HEIGHTS = 1_003
WITHIN_S = 30.0
HONEST, LIAR, LATE = (0, 1), 2, 3


def history(genesis: Genesis, keys, path: Path, *, keep_heights: int) -> None:
    """A ledger of `HEIGHTS` blocks, a record in every hundredth, decided by these keys."""

    class Validators(LedgerNetwork):
        def __init__(self) -> None:
            self.keys = tuple(sorted(keys, key=lambda key: key.address))
            self.generator = self.keys[0]
            self.genesis, self.network = genesis, genesis.network_id()
            self.validators = genesis.registry().validators()
            self.clock = SystemClock()
            self._numbers = {}

    async def make() -> None:
        net = Validators()
        ledger = await net.open(path, keep_heights=keep_heights)
        while ledger.height < HEIGHTS:
            if ledger.height % 100 == 5:
                net.observe_all(ledger, net.record(f"record {ledger.height}"))
            block = await net.propose(ledger)
            await ledger.validate(block, net.clock.now_ms(), Round(0))
            await ledger.commit(net.certify(block))
        assert (await ledger.summary()).kept_from >= (1 if keep_heights == 0 else HEIGHTS // 2 - 1)
        await ledger.close()

    trio.run(make)


def logged_at(log: str, pattern: str) -> datetime:
    """When a peer's log first says so."""
    found = re.search(rf"^(\S+ \S+) .*{pattern}", log, re.MULTILINE)
    assert found, pattern
    return datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f")  # noqa: DTZ007 - two of one clock


@pytest.mark.parametrize("keep_heights", [0, 1], ids=["block by block", "behind the horizon, by a snapshot"])
def test_it_catches_up_and_drops_the_liar(lay_out_tiny, tiny_models, tmp_path, keep_heights: int) -> None:
    net = lay_out_tiny(tmp_path / "net", tiny_models, peers=4, first_port=22000)
    genesis = load_genesis(net.genesis)
    keys = [open_identity(place.data_dir).member for place in net.places]
    history(genesis, keys, tmp_path / "ledger.sqlite", keep_heights=keep_heights)
    for place in net.places:
        config = load_config(place.data_dir)
        save_config(replace(config, ledger=replace(config.ledger, keep_heights=keep_heights)))
        if place.index != LATE:
            shutil.copy(tmp_path / "ledger.sqlite", place.data_dir / "ledger.sqlite")
    liar_id, *honest_ids = (net.multiaddr(index).rpartition("/p2p/")[2] for index in (LIAR, *HONEST))
    refusal = r"(?:sync_peer_refused|snapshot_peer_dropped) peer=(\S+)"
    try:
        # The liar is asked first, and again while there is nobody else.
        net.start(LIAR, faulty=("lying", "1", "1", str(tmp_path / "tap"), "engine"))
        net.until(lambda: net.height(LIAR) >= HEIGHTS, "the liar stands where the others will")
        net.start(LATE)
        net.until(lambda: bool(re.search(refusal, net.log(LATE))), "it was lied to")
        for index in HONEST:
            net.start(index)
        net.until(lambda: net.height(LATE) >= HEIGHTS, "it has caught up")
        log = net.log(LATE)
        began = logged_at(log, f"peer_connected .*(?:{'|'.join(honest_ids)})")
        took_s = (logged_at(log, f"event=committed height={HEIGHTS} ") - began).total_seconds()
        print(f"caught up with {HEIGHTS} heights in {took_s:.1f} s")
        refused = re.findall(refusal, log)
        assert set(refused) == {liar_id}, "the liar alone"
        assert ("snapshot_installed height=1000" in log) == (keep_heights == 1)
        assert took_s < WITHIN_S

        # It is a validator as the others are.
        net.until_ready(LATE)
        answer = net.ask(LATE, "What did I miss?")
        assert net.receipt(LATE, answer["id"], "anchored")
        net.until_level(*HONEST, LATE)
        height = net.height(LATE)
    finally:
        net.kill(LIAR)
        net.stop()
    peers = {net.places[i].data_dir: Address(bytes.fromhex(net.places[i].address[2:])) for i in (*HONEST, LATE)}
    inspected = inspect(genesis, peers)
    assert inspected.height == height
    assert inspected.blocks == 3 * height if keep_heights == 0 else inspected.blocks < 3 * height
    assert height > HEIGHTS
