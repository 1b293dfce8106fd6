"""The status snapshot: rows that the page and `nsllm status` show, read from the parts of a peer at one moment."""

from __future__ import annotations

from typing import Any

from nsllm.governance.anchor_store import AnchorRow
from nsllm.governance.block_store import BlockRow
from nsllm.governance.offences import OffenceRow
from nsllm.governance.policy import Policy
from nsllm.ids import PeerId, hex0x
from nsllm.node.views import CertificateRow, PeerRow
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.network import Network


def peer_rows(network: Network, directory: PeerDirectory, own_height: int) -> tuple[PeerRow, ...]:
    """Our own row first, then every known peer, ascending by peer id."""
    own = _row(network, directory, network.peer_id)
    ours = PeerRow(
        peer_id=own.peer_id,
        address=own.address,
        roles=own.roles,
        multiaddrs=network.addresses(),
        connected=True,
        rtt_ms=None,
        height=own_height,
    )
    others = (peer for peer in directory.peers() if peer != network.peer_id)
    return (ours, *(_row(network, directory, peer) for peer in others))


def _row(network: Network, directory: PeerDirectory, peer: PeerId) -> PeerRow:
    member = directory.member_of(peer)
    state = directory.state_of(peer)
    known = network.address_of(peer)
    return PeerRow(
        peer_id=peer,
        address=hex0x(member.address) if member else None,
        roles=member.roles if member else (),
        multiaddrs=directory.multiaddrs_of(peer) or ((known,) if known else ()),
        connected=peer in network.connected(),
        rtt_ms=round(state.rtt_s * 1000, 2) if state.rtt_s is not None else None,
        height=state.height,
    )


def certificate_row(row: BlockRow) -> CertificateRow:
    """One decided block for the page."""
    return CertificateRow(
        height=row.height,
        round=row.round,
        time_ms=row.time_ms,
        records=row.records,
        log_size=row.log_size,
        signers=row.signers,
        anchor=row.transactions > 0,
    )


def anchor_row(row: AnchorRow) -> dict[str, Any]:
    """One anchor for the page."""
    return {
        "log_size": row.log_size,
        "log_root": hex0x(row.log_root),
        "tx": hex0x(row.transaction_hash),
        "height": row.transaction_height,
        "certified": row.proof_height is not None,
    }


def offence_row(row: OffenceRow) -> dict[str, Any]:
    """One convicted validator for the page."""
    return {
        "validator": hex0x(row.validator),
        "kind": row.kind,
        "height": row.offence_height,
        "epoch": row.epoch,
        "block": row.height,
    }


def policy_view(policy: Policy) -> dict[str, Any]:
    """The policy in force for the page."""
    return {
        "digest": hex0x(policy.digest()),
        "toxicity_max_ppm": policy.toxicity_max_ppm,
        "coherence_min_ppm": policy.coherence_min_ppm,
        "reuse_min_ppm": policy.reuse_min_ppm,
        "weights": {weight.name: weight.ppm for weight in policy.weights},
        "rubric": hex0x(policy.rubric.digest()),
    }
