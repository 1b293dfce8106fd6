"""Invites: one spelling, every damage noticed; tokens good for one member, once, across restarts."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.consensus.registry import Member, MemberRegistry, RegistryState
from nsllm.governance.defaults import default_policy
from nsllm.governance.genesis import Genesis
from nsllm.ids import Digest, TimeMs
from nsllm.node.errors import InviteError
from nsllm.node.founding import found, founder
from nsllm.node.identity import Identity, new_identity
from nsllm.node.invitation import (
    Invite,
    InviteBook,
    clear_pending,
    parse_invite,
    pending_invite,
    save_pending,
)

POLICY = default_policy(Digest(bytes(32)), Digest(bytes(32)))
FOUNDER = new_identity(random.Random(1).randbytes)
JOINER = new_identity(random.Random(2).randbytes)
OTHER = new_identity(random.Random(3).randbytes)
GENESIS: Genesis = found("lab", [founder(FOUNDER)], POLICY, TimeMs(1_000), local=True)
ADDRESS = f"/ip4/192.0.2.7/tcp/4700/p2p/{FOUNDER.peer_id}"
INVITE = Invite(genesis=GENESIS, addresses=(ADDRESS,), token=bytes(range(16)), expires_ms=TimeMs(5_000))


class HandClock:
    def __init__(self) -> None:
        self.ms = 10_000

    def now_ms(self) -> TimeMs:
        return TimeMs(self.ms)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


def book(folder: Path, clock: HandClock, identity: Identity = FOUNDER) -> InviteBook:
    return InviteBook(
        folder / "invites.book",
        key=identity.member,
        genesis=GENESIS,
        clock=clock,
        random_bytes=random.Random(7).randbytes,
    )


def member(identity: Identity) -> Member:
    return founder(identity, ["contributor", "data"])


def test_text_and_back() -> None:
    text = INVITE.text()
    assert text.startswith("nsllm-invite:")
    assert "\n" not in text
    assert parse_invite(text) == INVITE
    assert parse_invite(f"  {text[:100]}\n> {text[100:]}\n".replace("> ", "")) == INVITE


@given(place=st.integers(0, len(INVITE.text()) - 1), sign=st.sampled_from("Az09_-=!"))
def test_no_character_changes_unnoticed(place: int, sign: str) -> None:
    text = INVITE.text()
    changed = text[:place] + sign + text[place + 1 :]
    if changed != text:
        with pytest.raises(InviteError):
            parse_invite(changed)


@pytest.mark.parametrize(
    "text", ["", "hello", "nsllm-invite:", "nsllm-invite:AAAA", INVITE.text()[:-9], INVITE.text() + "AAAA"]
)
def test_what_is_no_invite(text: str) -> None:
    with pytest.raises(InviteError):
        parse_invite(text)


def test_a_token_admits_one_member_once(tmp_path: Path, clock: HandClock) -> None:
    invites = book(tmp_path, clock)
    invite = invites.create([ADDRESS])
    admission = invites.redeem(invite.token, member(JOINER))
    registry = MemberRegistry(GENESIS.network_id(), RegistryState.of(GENESIS.members))
    assert registry.admit(admission)
    assert registry.get(JOINER.address) == member(JOINER)
    assert invites.redeem(invite.token, member(JOINER)) == admission  # the first answer may have been lost
    with pytest.raises(InviteError, match="used already"):
        invites.redeem(invite.token, member(OTHER))


def test_the_book_survives_a_restart(tmp_path: Path, clock: HandClock) -> None:
    used = book(tmp_path, clock).create([ADDRESS])
    admission = book(tmp_path, clock).redeem(used.token, member(JOINER))
    again = book(tmp_path, clock)
    assert again.admissions() == (admission,)
    with pytest.raises(InviteError, match="used already"):
        again.redeem(used.token, member(OTHER))


def test_the_book_holds_no_token(tmp_path: Path, clock: HandClock) -> None:
    invite = book(tmp_path, clock).create([ADDRESS])
    assert invite.token not in (tmp_path / "invites.book").read_bytes()
    assert (tmp_path / "invites.book").stat().st_mode & 0o777 == 0o600


def test_an_expired_token_is_refused_but_not_an_admission(tmp_path: Path, clock: HandClock) -> None:
    invites = book(tmp_path, clock)
    late, used = invites.create([ADDRESS], ttl_s=10), invites.create([ADDRESS], ttl_s=10)
    admission = invites.redeem(used.token, member(JOINER))
    clock.ms += 10_000
    with pytest.raises(InviteError, match="expired"):
        invites.redeem(late.token, member(OTHER))
    assert invites.redeem(used.token, member(JOINER)) == admission


@pytest.mark.parametrize(
    ("token", "who", "says"),
    [(bytes(16), member(JOINER), "not known here"), (None, founder(JOINER), "cannot grant the validator role")],
)
def test_refusals(tmp_path: Path, clock: HandClock, token: bytes | None, who: Member, says: str) -> None:
    invites = book(tmp_path, clock)
    invite = invites.create([ADDRESS])
    with pytest.raises(InviteError, match=says):
        invites.redeem(token or invite.token, who)


def test_only_genesis_members_invite(tmp_path: Path, clock: HandClock) -> None:
    with pytest.raises(InviteError, match="not a genesis member"):
        book(tmp_path, clock, JOINER).create([ADDRESS])
    with pytest.raises(InviteError, match="no address"):
        book(tmp_path, clock).create([])


def test_open_invites_are_bounded(tmp_path: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsllm.node.invitation.MAX_OPEN_INVITES", 2)
    invites = book(tmp_path, clock)
    invites.create([ADDRESS], ttl_s=1)
    invites.create([ADDRESS], ttl_s=100)
    with pytest.raises(InviteError, match="2 invites are open"):
        invites.create([ADDRESS])
    clock.ms += 1_000
    invites.create([ADDRESS])


def test_a_damaged_book_is_named(tmp_path: Path, clock: HandClock) -> None:
    (tmp_path / "invites.book").write_bytes(b"\x00rubbish")
    with pytest.raises(InviteError, match=r"invites\.book is damaged"):
        book(tmp_path, clock)


def test_the_joiners_side(tmp_path: Path) -> None:
    assert pending_invite(tmp_path) is None
    save_pending(tmp_path, INVITE)
    assert pending_invite(tmp_path) == INVITE
    assert (tmp_path / "invite.pending").stat().st_mode & 0o777 == 0o600
    clear_pending(tmp_path)
    clear_pending(tmp_path)
    assert pending_invite(tmp_path) is None
    (tmp_path / "invite.pending").write_bytes(b"x")
    with pytest.raises(InviteError, match="damaged"):
        pending_invite(tmp_path)
