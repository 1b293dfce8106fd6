"""What stands in a data folder before a peer runs on it: keys, genesis, settings, chosen ports. Blocking.

`settle` is what `nsllm up` does first: with no genesis it founds a solo network. It never changes an existing genesis.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from nsllm.clock import Clock
from nsllm.files import private_folder, read_bounded, write_atomic
from nsllm.governance.defaults import default_policy
from nsllm.governance.genesis import Genesis, load_genesis, save_genesis
from nsllm.governance.policy import Policy
from nsllm.node.config import GENESIS_FILE, PeerConfig
from nsllm.node.engine.choice import text_digest
from nsllm.node.engine.fetch import Report
from nsllm.node.engine.models import ModelPaths, ensure_default_models, model_digest
from nsllm.node.errors import DataFolderError
from nsllm.node.founding import found, founder
from nsllm.node.identity import Identity, open_identity
from nsllm.node.tcp_ports import choose

P2P_PORT_FILE: Final = "p2p.port"
FIRST_P2P_PORT: Final = 4700
SOLO_NAME: Final = "solo"


@dataclass(frozen=True, slots=True)
class Settled:
    """A data folder that a peer can run on."""

    config: PeerConfig
    """With the listen address and the folder's own genesis filled in."""
    identity: Identity
    genesis: Genesis
    founded: bool
    """True if this call made the genesis."""


def settle(
    config: PeerConfig,
    clock: Clock,
    report: Report,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> Settled:
    """Make what is missing in the data folder; hold its lock.

    Args:
        config: settings; `config.genesis` is copied into the folder the first time.
        clock: for the founding time.
        report: progress of fetching models, which founding needs (their digests stand in the policy).
        random_bytes: source of keys.

    Raises:
        DataFolderError: the folder belongs to another network than `config.genesis`.
        UsageError: see `open_identity`, `load_genesis` and `ensure_default_models`.
    """
    private_folder(config.data_dir)
    identity = open_identity(config.data_dir, random_bytes)
    genesis = _genesis(config)
    founded = genesis is None
    if genesis is None:
        genesis = found_solo(config, identity, clock, report)
    config = replace(listening(config), genesis=config.data_dir / GENESIS_FILE)
    return Settled(config=config, identity=identity, genesis=genesis, founded=founded)


def found_solo(config: PeerConfig, identity: Identity, clock: Clock, report: Report, name: str = SOLO_NAME) -> Genesis:
    """Found a network of one in the data folder."""
    policy = policy_for(model_paths(config, report))
    genesis = found(name, [founder(identity)], policy, clock.now_ms(), local=True)
    save_genesis(config.data_dir / GENESIS_FILE, genesis)
    return genesis


def model_paths(config: PeerConfig, report: Report) -> ModelPaths:
    """Folders of the models that this peer runs; the default ones are fetched if need be."""
    text, encoder = config.engine.text_model, config.engine.encoder_model
    path, devices = config.engine.backend, config.engine.spread()
    if text is not None and encoder is not None:
        return ModelPaths(text=text, encoder=encoder, backend=path, devices=devices)
    default = ensure_default_models(config.home, report)
    return ModelPaths(text=text or default.text, encoder=encoder or default.encoder, backend=path, devices=devices)


def policy_for(paths: ModelPaths) -> Policy:
    """The default policy, with these models, as this machine runs them, as the rubric's."""
    return default_policy(text_digest(paths), model_digest(paths.encoder))


def listening(config: PeerConfig) -> PeerConfig:
    """`config` with a libp2p address to listen on: the configured ones, or a port that is chosen once and kept."""
    if config.p2p.listen:
        return config
    path = config.data_dir / P2P_PORT_FILE
    if path.exists():
        text = read_bounded(path, limit_bytes=16).decode("ascii", "replace").strip()
        if not text.isdecimal() or not 0 < int(text) < 65536:
            raise DataFolderError(f"{path} does not hold a port", hint="remove the file; another port is chosen then")
        port = int(text)
    else:
        (port,) = choose("0.0.0.0", FIRST_P2P_PORT, avoid=[config.api.port])  # noqa: S104 - peers are to reach it
        write_atomic(path, f"{port}\n".encode())
    return replace(config, p2p=replace(config.p2p, listen=(f"/ip4/0.0.0.0/tcp/{port}",)))


def _genesis(config: PeerConfig) -> Genesis | None:
    """The folder's genesis; the configured one, copied, if the folder has none; None if there is neither."""
    kept = config.data_dir / GENESIS_FILE
    own = load_genesis(kept) if kept.exists() else None
    if config.genesis is None or config.genesis == kept:
        return own
    given = load_genesis(config.genesis)
    if own is None:
        save_genesis(kept, given)
        return given
    if own.network_id() != given.network_id():
        raise DataFolderError(
            f"{config.data_dir} belongs to network {_name(own)}, {config.genesis} is {_name(given)}",
            hint="use another --data-dir for the other network",
        )
    return own


def _name(genesis: Genesis) -> str:
    return f"{genesis.name} ({genesis.network_id().hex()[:16]})"
