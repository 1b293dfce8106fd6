"""One process of py-libp2p's Kademlia: its own host with TCP, noise and yamux, values put and got.

As quick as it can be: one connection a peer, full routing tables, and a get ends with the first valid value.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import multiaddr
import trio
from libp2p import new_host
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network.config import ConnectionConfig
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.records.validator import NamespacedValidator, Validator
from libp2p.tools.anyio_service import background_trio_service

SPACE: Final = "bench"
IDENTIFIED_S: Final = 60.0


class AnyValue(Validator):  # type: ignore[misc] # the library is untyped to mypy
    """Takes every value."""

    def validate(self, _key: str, _value: bytes) -> None:
        """Nothing to object to."""

    def select(self, _key: str, _values: list[bytes]) -> int:
        """The first is as good as any."""
        return 0


async def put(table: Any, keys: Sequence[str], values: Sequence[str]) -> dict[str, Any]:
    """Store values under keys."""
    took = []
    for key, value in zip(keys, values, strict=True):
        began = time.perf_counter()
        await table.put_value(f"/{SPACE}/{key}", bytes.fromhex(value))
        took.append(time.perf_counter() - began)
    return {"took_s": took, "found": len(took)}


async def get(table: Any, keys: Sequence[str]) -> dict[str, Any]:
    """Get values; an own copy is forgotten first, so that every get asks others."""
    took, found = [], 0
    for key in keys:
        name = f"/{SPACE}/{key}"
        table.value_store.remove(name.encode())
        began = time.perf_counter()
        found += await table.get_value(name, quorum=1) is not None
        took.append(time.perf_counter() - began)
    return {"took_s": took, "found": found}


async def meet(host: Any, table: Any, addresses: Sequence[str]) -> dict[str, Any]:
    """Connect to all, and take everybody that is connected into the routing table."""
    for address in addresses:
        info = info_from_p2p_addr(multiaddr.Multiaddr(address))
        if info.peer_id != host.get_id() and info.peer_id not in host.get_connected_peers():
            await host.connect(info)
    with trio.fail_after(IDENTIFIED_S):
        for peer in host.get_connected_peers():
            while peer not in host._identified_peers:  # noqa: ASYNC110, SLF001 - nobody tells of it
                await trio.sleep(0.02)
            await table.add_peer(peer)
    return {"peers": len(host.get_connected_peers())}


async def serve(plan: Mapping[str, Any]) -> None:
    """Run, and do what standard input says."""
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    host = new_host(
        connection_config=ConnectionConfig(max_connections_per_peer=1), disable_identify_address_discovery=True
    )
    table = KadDHT(
        host,
        DHTMode.SERVER,
        validator=NamespacedValidator({SPACE: AnyValue()}, strict_validation=True),
        validator_changed=True,
        strict_validation=True,
        max_peers_per_subnet=0,
    )
    async with host.run(listen_addrs=[multiaddr.Multiaddr(plan["listen"])]), background_trio_service(table):
        _answer({"pid": os.getpid(), "address": f"{plan['listen']}/p2p/{host.get_id()}"})
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            task: Mapping[str, Any] = json.loads(line)
            match task["do"]:
                case "meet":
                    _answer(await meet(host, table, task["addresses"]))
                case "put":
                    _answer(await put(table, task["keys"], task["values"]))
                case "get":
                    _answer(await get(table, task["keys"]))


def _answer(values: Mapping[str, Any]) -> None:
    """One line to whoever asked."""
    print(json.dumps(values), flush=True)


def main() -> None:
    """Read the plan, and serve."""
    trio.run(serve, json.loads(sys.stdin.readline()))
