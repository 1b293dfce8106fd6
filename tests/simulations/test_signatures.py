"""Signatures on disks: where two peers kept what contradicts itself, or a guard forgot, that is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsllm.consensus.guard import SignerGuard
from nsllm.consensus.inputs import CertificateReceived, VoteReceived, encode_input
from nsllm.consensus.replay import begin_entry
from nsllm.consensus.vote import Choice, Vote, VoteBody
from nsllm.consensus.wal import WriteAheadLog
from nsllm.crypto import MemberKey
from nsllm.ids import Digest, Epoch, Height, NetworkId, Round
from nsllm.simulations.errors import InvariantError
from nsllm.simulations.signatures import Signatures

NETWORK = NetworkId(b"\7" * 32)
KEYS = [MemberKey(bytes([number]) * 32) for number in range(1, 4)]
ONE, OTHER = Digest(b"\1" * 32), Digest(b"\2" * 32)


def body(key: MemberKey, value: Digest | None, *, kind="prevote", height=1, round_=0, lock=None) -> VoteBody:
    return VoteBody(
        kind=kind,
        epoch=Epoch(0),
        height=Height(height),
        round=Round(round_),
        value=value,
        validator=key.address,
        lock=lock,
        valid_round=None,
    )


class Peer:
    """A validator's folder, written as its driver writes it."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder / f"peer-{number}"
        self.home = self.folder / "consensus"
        self.home.mkdir(parents=True)
        self.key = KEYS[number]
        self.guard = SignerGuard(self.key, NETWORK, self.home / "guard")

    @property
    def address(self):
        return self.key.address

    def vote(self, value: Digest | None = ONE, *, kind="prevote", height: int = 1, round_: int = 0, **fields) -> Vote:
        return self.guard.vote(body(self.key, value, kind=kind, height=height, round_=round_, **fields))

    def log(self, *votes: Vote, height: int = 1) -> None:
        log = WriteAheadLog(self.home / "wal")
        if not log.recovered:
            log.append(begin_entry(NETWORK, self.address, Height(height)))
        for vote in votes:
            log.append(encode_input(VoteReceived(vote=vote)))
        log.close()


@pytest.fixture
def peers(tmp_path: Path) -> list[Peer]:
    return [Peer(tmp_path, number) for number in range(3)]


def look(peers: list[Peer], **fields) -> Signatures:
    found = Signatures(NETWORK, **fields)
    for peer in peers:
        found.add_left(peer.folder, peer.address)
    for peer in peers:
        found.check_guard(peer.folder, peer.address)
    return found


def other_vote(peer: Peer, value: Digest | None = OTHER) -> Vote:
    """What its guard would not sign."""
    aside = peer.home / "aside"
    vote = SignerGuard(peer.key, NETWORK, aside).vote(body(peer.key, value))
    aside.unlink()
    return vote


def test_honest_validators_are_found_honest_also_at_a_second_look(peers: list[Peer]) -> None:
    prevotes = [peer.vote() for peer in peers]
    precommits = [peer.vote(kind="precommit") for peer in peers]
    later = peers[0].vote(None, round_=1, lock=Choice(round=Round(0), value=ONE))
    for peer in peers:
        peer.log(*prevotes, *precommits, later)
    assert len(look(peers)) == 7
    assert len(look(peers)) == 7, "the logs are as they were"


def test_a_peer_that_never_signed_has_nothing_to_show(peers: list[Peer]) -> None:
    assert len(look(peers)) == 0


@pytest.mark.parametrize("value", [OTHER, None], ids=["another block", "nil"])
def test_two_logs_that_hold_contradicting_votes_convict(peers: list[Peer], value: Digest | None) -> None:
    liar, one, other = peers
    one.log(liar.vote())
    other.log(other_vote(liar, value))
    with pytest.raises(InvariantError, match=r"signed .* in the log of peer-1 and .* in the log of peer-2") as caught:
        look([one, other])
    assert liar.address.hex() in str(caught.value)
    assert look(peers, byzantine=frozenset({liar.address})).liars == {liar.address}


def test_a_vote_that_the_own_guard_did_not_sign_convicts(peers: list[Peer]) -> None:
    peers[0].vote()
    peers[1].log(other_vote(peers[0]))
    with pytest.raises(InvariantError, match="the guard of peer-0"):
        look(peers[:2])


def test_votes_in_a_relayed_certificate_count(peers: list[Peer]) -> None:
    liar, one, _ = peers
    one.log(liar.vote())
    log = WriteAheadLog(one.home / "wal")
    log.append(encode_input(CertificateReceived(votes=(other_vote(liar),))))
    log.close()
    with pytest.raises(InvariantError, match="signed"):
        look(peers)


def test_a_guard_that_was_rolled_back_or_lost_is_found(peers: list[Peer]) -> None:
    peer, witness, _ = peers
    peer.vote()
    before = (peer.home / "guard").read_bytes()
    witness.log(peer.vote(kind="precommit"))
    look(peers)
    (peer.home / "guard").write_bytes(before)
    with pytest.raises(InvariantError, match="the guard of peer-0 knows"):
        look(peers)
    (peer.home / "guard").unlink()
    with pytest.raises(InvariantError, match="the guard of peer-0 knows"):
        look(peers)


def test_what_is_damaged_or_anothers_is_found(peers: list[Peer]) -> None:
    first, second, third = peers
    for peer in peers:
        peer.vote()
    guard = first.home / "guard"
    sound = guard.read_bytes()
    guard.write_bytes(sound[:-1])
    with pytest.raises(InvariantError, match=r"peer-0: .* damaged"):
        look(peers)
    guard.write_bytes((second.home / "guard").read_bytes())
    with pytest.raises(InvariantError, match="the guard of peer-0 is that of"):
        look(peers)
    guard.write_bytes(sound)
    forged = third.vote(kind="precommit", value=None)
    signature = bytearray(forged.signature)
    signature[3] ^= 1
    second.log(
        Vote(**{name: getattr(forged, name) for name in forged.__struct_fields__} | {"signature": bytes(signature)})
    )
    with pytest.raises(InvariantError, match="peer-1: "):
        look(peers)
