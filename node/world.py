"""The world that a peer lives in: every source of time, chance, messages, models and blocking work.

A real peer gets libp2p, threads, a torch worker and plugin workers (`real_world`). A simulated one gets an in-memory
network, virtual time and a stand-in model. The composition root (`nsllm.node.parts`) cannot tell them apart.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from nsllm.clock import Clock, SystemClock
from nsllm.databases import ON_DISK, Databases
from nsllm.ids import PeerId
from nsllm.node.attachments.host import WorkerDescriber
from nsllm.node.attachments.port import Describer, TablesOnly
from nsllm.node.config import EngineConfig, PeerConfig
from nsllm.node.data_folder import Settled, model_paths
from nsllm.node.engine.pool import ModelPool, Models
from nsllm.node.engine.port import Engine
from nsllm.node.engine.supervisor import WorkerEngine
from nsllm.node.engine.upstream import Upstream, UpstreamEngine
from nsllm.node.errors import ConfigError
from nsllm.node.model_opener import ModelOpener, free_bytes
from nsllm.node.views import PeerEvent
from nsllm.offload import Offload, ThreadOffload
from nsllm.p2p.libp2p_host import parse
from nsllm.p2p.libp2p_network import Libp2pNetwork
from nsllm.p2p.network import Network
from nsllm.plugins.host import PluginHost
from nsllm.plugins.port import PluginPort


@dataclass(frozen=True, slots=True)
class World:
    """Ports that a peer is given."""

    clock: Clock
    offload: Offload
    rng: random.Random
    """For jitter, nonces and completion ids; keys are made elsewhere."""
    network: Network
    engine: Engine
    plugins: PluginPort
    services: tuple[Callable[[], Awaitable[None]], ...]
    """Tasks that keep engine and plugins alive for as long as the peer runs."""
    folder: Path
    """Where the peer's databases stand."""
    serve_api: bool
    """Whether the HTTP side runs; a simulation asks the peer directly."""
    databases: Databases = ON_DISK
    """Where these databases are."""
    models: Models | None = None
    """Loads and unloads text models; None: the engine's are what there is."""
    describer: Describer = field(default_factory=TablesOnly)
    """Looks at what is attached to questions."""
    observer: Callable[[PeerEvent], None] = lambda _event: None
    """Told of every event of the peer, at once and in order."""
    checkpoint: Callable[[str], None] = lambda _name: None
    """Called at named moments of consensus; tests use it to kill a process between two of them."""


def real_world(settled: Settled, checkpoint: Callable[[str], None] | None = None) -> World:
    """Threads, libp2p, and worker processes on this machine.

    Raises:
        ModelMissingError, PluginMissingError, ConfigError: what the settings name is not there.
    """
    config: PeerConfig = settled.config
    rng = random.Random(secrets.token_bytes(32))  # noqa: S311 - seeded by the system, never for keys
    paths = model_paths(config, lambda _progress: None)
    opener = ModelOpener(config.home, config.engine, paths.encoder, rng)
    worker, worker_bytes = opener.base(paths.text)
    upstream = _upstream(config.engine, worker, rng)
    offload = ThreadOffload()
    pool = ModelPool(
        base=upstream or worker,
        base_bytes=worker_bytes,
        find=opener.find,
        offload=offload,
        budget_bytes=config.engine.memory_mb << 20,
        free_bytes=free_bytes,
    )
    plugins = PluginHost(config.plugins.enabled)
    describer = WorkerDescriber()
    network = Libp2pNetwork(
        secret=settled.identity.libp2p_secret,
        listen=config.p2p.listen,
        local=settled.genesis.local,
        announce=_told(config.p2p.announce, settled.identity.peer_id),
    )
    return World(
        clock=SystemClock(),
        offload=offload,
        rng=rng,
        network=network,
        engine=pool,
        models=pool,
        plugins=plugins,
        services=(
            partial(worker.run),
            *((partial(upstream.run),) if upstream else ()),
            partial(pool.run),
            partial(plugins.run),
            partial(describer.run),
        ),
        folder=config.data_dir,
        serve_api=True,
        describer=describer,
        checkpoint=checkpoint or (lambda _name: None),
    )


def _told(addresses: tuple[str, ...], peer: PeerId) -> tuple[str, ...]:
    """The addresses to announce, if others can dial them.

    Raises:
        ConfigError: one is no multiaddr, or names a peer already.
    """
    for address in addresses:
        try:
            if "/p2p/" in address:
                raise ValueError("it names a peer")
            parse(f"{address}/p2p/{peer}")
        except ValueError as error:
            raise ConfigError(
                f"p2p.announce: {address!r} cannot be announced: {error}",
                hint="such as /ip4/192.0.2.7/tcp/4700, without /p2p/…",
            ) from None
    return addresses


def _upstream(config: EngineConfig, worker: WorkerEngine, rng: random.Random) -> UpstreamEngine | None:
    """The engine that writes answers elsewhere, if one is configured; `worker` embeds and judges for it."""
    url = config.upstream_base()
    if not url:
        return None
    upstream = Upstream(
        url=url,
        model=config.upstream_model,
        key=config.upstream_key,
        first_token_s=config.upstream_first_token_s,
        between_tokens_s=config.upstream_between_tokens_s,
    )
    return UpstreamEngine(
        local=worker,
        upstream=upstream,
        max_active=config.max_active,
        max_queue=config.max_queue,
        max_wait_s=config.max_wait_s,
        max_tokens=config.max_tokens_default,
        rng=rng,
    )
