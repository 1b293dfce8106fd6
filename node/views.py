"""Views of a peer: what it shows of itself to its page, its metrics and whoever asks for a receipt. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from nsllm.node.engine.port import EngineInfo, LoadedModel
from nsllm.record import Visibility

ReceiptLevel = Literal["certified", "logged", "anchored"]
LEVELS: Final = ("pending", "certified", "logged", "anchored")
"""Of receipts, in the order in which one goes through them."""


@dataclass(frozen=True, slots=True)
class ReceiptStatus:
    """What is known of a completion's receipt."""

    completion_id: str
    state: Literal["pending", "certified", "logged", "anchored", "none"]
    """`none`: there will be no receipt; `detail` says why (private, withheld, unpublished, expired)."""
    detail: str
    score_ppm: int | None
    height: int | None
    signers: tuple[str, ...]
    anchor_tx: str | None
    """Hash (0x…) of the anchor transaction once it is certified."""
    receipt_json: str | None
    """Canonical receipt at its present level; None before certification."""
    revoked_height: int | None = None
    """At which validators took the record back."""
    final: bool = False
    """It comes no further: anchored, or its block was never here, or is gone."""

    def is_over(self, level: ReceiptLevel) -> bool:
        """Whether it has reached a level, or never will."""
        return self.final or self.state == "none" or LEVELS.index(self.state) >= LEVELS.index(level)


@dataclass(frozen=True, slots=True)
class PeerEvent:
    """Something that happened, for the status page's event stream and `nsllm up`'s log."""

    kind: str
    """Such as `generation_finished`, `certified`, `anchored`, `peer_connected`, `cache_hit`."""
    at_ms: int
    fields: dict[str, str | int | bool | None]
    """Never prompts, answers or keys."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """Answer of `/readyz`."""

    genesis: bool
    engine: bool
    quorum: bool
    detail: str

    @property
    def ready(self) -> bool:
        """All three hold."""
        return self.genesis and self.engine and self.quorum


@dataclass(frozen=True, slots=True)
class PeerRow:
    """One peer that we know."""

    peer_id: str
    address: str | None
    """Member address (0x…), if its card was checked."""
    roles: tuple[str, ...]
    multiaddrs: tuple[str, ...]
    connected: bool
    rtt_ms: float | None
    height: int | None


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """One decided block, for the page."""

    height: int
    round: int
    time_ms: int
    records: int
    log_size: int
    signers: int
    anchor: bool


@dataclass(frozen=True, slots=True)
class Status:
    """The whole status page, frozen. None means no data, never a made-up value."""

    version: str
    name: str
    peer_id: str
    address: str
    roles: tuple[str, ...]
    network: str
    """Network name from the genesis."""
    network_id: str
    multiaddrs: tuple[str, ...]
    uptime_s: float
    default_visibility: Visibility
    readiness: Readiness
    engine: EngineInfo
    peers: tuple[PeerRow, ...]
    cache: dict[str, int | float | None]
    """records, bytes, shards_held, hits_local, hits_remote, hits_semantic, misses, refused, reuse_limit_ppm (None:
    semantic reuse is off), reuse_right, reuse_wrong, reuse_audits"""
    consensus: dict[str, Any]
    """height, epoch, round, validators, quorum, faults, pending, halted (reason or None), offences (newest first, at
    most 10: validator, kind, height and epoch of what it did, block that holds the evidence), observers (what each
    validator observed, came late with, abstained from and why, contradicted, since this peer started)"""
    certificates: tuple[CertificateRow, ...]
    """Newest first, at most 10."""
    policy: dict[str, Any]
    logs: dict[str, Any]
    """peer_log_size, peer_log_root, network_log_size, network_log_root, anchored_size, kept_from (the oldest block
    here), snapshot_height (of the newest snapshot here; None before the first)"""
    anchors: tuple[dict[str, Any], ...]
    """Newest first, at most 10: log_size, log_root, tx, height, certified"""
    notices: tuple[str, ...]
    """What an operator should know, such as "fewer than 4 validators: f = 0"."""


@dataclass(frozen=True, slots=True)
class ModelShelf:
    """Text models of a running peer."""

    models: tuple[LoadedModel, ...]
    """The default one first."""
    budget_mb: int | None
    """Memory for all of them together; None: no limit but what is free."""
