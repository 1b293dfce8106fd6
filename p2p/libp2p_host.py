"""The libp2p host: TCP, noise and yamux only, one connection a peer, no dialling of its own, every stream guarded."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Sequence
from typing import Any, Final

import multiaddr
import psutil
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_key
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX_ID

from nsllm.p2p.guard import StreamGuard, StreamLimits
from nsllm.p2p.libp2p_muxer import SteadyYamux, install
from nsllm.p2p.libp2p_stream import Libp2pStream
from nsllm.p2p.libp2p_transport import GuardedTcp
from nsllm.p2p.network import Stream
from nsllm.p2p.tcp_port import is_free

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 512
NEGOTIATE_S: Final = 10
ANY_STREAMS: Final = StreamLimits(per_peer=256, total=2048)
"""Streams of all protocols, the library's own included; ours have their own, tighter bound."""


def make_host(secret: bytes, *, local: bool, nursery: trio.Nursery) -> Any:
    """A `libp2p.host.basic_host.BasicHost` with the identity of 32 secret bytes, not listening yet."""
    _quieten()
    private_key = Ed25519PrivateKey.from_bytes(secret)
    keys = KeyPair(private_key, private_key.get_public_key())
    host = new_host(
        key_pair=keys,
        # Said explicitly: the default also offers TLS, secio and plaintext.
        sec_opt={NOISE_ID: Noise(keys, noise_privkey=new_noise_key().private_key)},
        muxer_opt={YAMUX_ID: SteadyYamux},
        transports=[GuardedTcp(local=local, nursery=nursery)],
        connection_config=ConnectionConfig(
            max_connections=MAX_CONNECTIONS,
            min_connections=0,
            low_watermark=0,
            high_watermark=MAX_CONNECTIONS,
            max_connections_per_peer=1,
        ),
        negotiate_timeout=NEGOTIATE_S,
        disable_identify_address_discovery=True,
    )
    swarm = host.get_network()
    install(swarm.upgrader.muxer_multistream)
    # Its counters leak with connections that die; connections are bounded above, streams by our guard.
    swarm.set_resource_manager(None)
    # The connector retries, with its own back-off.
    swarm.retry_config = RetryConfig(max_retries=0)
    swarm.auto_connector.start = _stay_idle

    guard = StreamGuard(ANY_STREAMS)

    async def guarded(inner: Any) -> None:
        async def negotiate_and_serve(_: Stream) -> None:
            await host._swarm_stream_handler(inner)  # noqa: SLF001 - the handler that the host gave to its swarm

        await guard.serve(negotiate_and_serve, Libp2pStream(inner, nursery), "any")

    swarm.set_stream_handler(guarded)
    return host


def dialable(addresses: Sequence[str], *, local: bool) -> tuple[str, ...]:
    """Listening multiaddrs as others can dial them: `0.0.0.0` and `::` become the machine's own addresses.

    Loopback stands in the result only where nothing else does, private ranges only if `local`.
    """
    found: dict[str, None] = {}
    for address in addresses:
        for host in ("0.0.0.0", "::"):  # noqa: S104 - recognised, not bound
            kind = "ip4" if host == "0.0.0.0" else "ip6"  # noqa: S104
            prefix = f"/{kind}/{host}/"
            if address.startswith(prefix):
                for own in _interfaces(kind, local=local):
                    found[f"/{kind}/{own}/{address.removeprefix(prefix)}"] = None
                break
        else:
            found[address] = None
    return tuple(found)


def is_taken(address: str) -> bool:
    """Whether somebody listens at this TCP multiaddr of ours already.

    The library listens with SO_REUSEPORT: a second peer would share the port without an error, and each would get some
    of the other's connections.
    """
    listen = multiaddr.Multiaddr(address)
    host = listen.value_for_protocol("ip6" if "/ip6/" in address else "ip4")
    return not is_free(host, int(listen.value_for_protocol("tcp")))


def parse(address: str) -> tuple[Any, str]:
    """(multiaddr without its peer, peer id) of a multiaddr ending in `/p2p/<id>`.

    Raises:
        ValueError: not such an address.
    """
    base, separator, peer = address.rpartition("/p2p/")
    if not separator or not base or not peer:
        raise ValueError(f"{address!r} does not end in /p2p/<peer id>")
    try:
        return multiaddr.Multiaddr(base), peer
    except Exception as error:  # noqa: BLE001 - multiaddr raises many kinds, bare ValueError and KeyError among them
        raise ValueError(f"{address!r} is no multiaddr: {error}") from None


def _interfaces(kind: str, *, local: bool) -> list[str]:
    own: list[str] = []
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            try:
                parsed = ipaddress.ip_address(entry.address.partition("%")[0])
            except ValueError:
                continue
            if f"ip{parsed.version}" == kind and not parsed.is_link_local and not parsed.is_loopback:
                own.append(str(parsed))
    wanted = [text for text in own if local or ipaddress.ip_address(text).is_global]
    return sorted(wanted) or sorted(own) or ["127.0.0.1" if kind == "ip4" else "::1"]


async def _stay_idle() -> None:
    """Stands for the library's auto-connector, which would dial whatever addresses peers told it."""


def _quieten() -> None:
    """The library logs at ERROR what it also raises; what it raises reaches our log once, with the peer."""
    library = logging.getLogger("libp2p")
    if library.level == logging.WARNING:  # what the library sets unless LIBP2P_DEBUG asks for more
        library.setLevel(logging.CRITICAL)
