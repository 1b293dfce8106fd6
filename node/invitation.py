"""Invitations: one line of text that lets another machine join, and the book of one-time tokens behind it.

An invite carries the genesis (so that the joiner trusts what its inviter trusts), dialable addresses and a token. The
book keeps only the token's hash, when it expires and whom it admitted; it survives a restart, and a repeated redeem by
the same member gets the same admission, because the first answer may have been lost.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta
from msgspec.structs import replace

from nsllm import canonical
from nsllm.canonical import Value
from nsllm.clock import Clock
from nsllm.consensus.registry import DEFAULT_SLOTS, Admission, Member, admit
from nsllm.crypto import MemberKey
from nsllm.errors import EncodingError
from nsllm.files import read_bounded, write_atomic
from nsllm.governance.genesis import MAX_GENESIS_BYTES, Genesis
from nsllm.ids import Digest, DigestField, NetworkId, TimeMs, TimeMsField
from nsllm.node.errors import InviteError

PREFIX: Final = "nsllm-invite:"
TOKEN_BYTES: Final = 16
CHECKSUM_BYTES: Final = 4
DEFAULT_TTL_S: Final = 24 * 3600
MAX_INVITE_BYTES: Final = MAX_GENESIS_BYTES + 64 * 1024
MAX_OPEN_INVITES: Final = 1024
MAX_BOOK_BYTES: Final = 4 * 1024 * 1024
BOOK_FILE: Final = "invites.book"
PENDING_FILE: Final = "invite.pending"

TokenField = Annotated[bytes, Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]


class Invite(Value, frozen=True, kw_only=True):
    """What an invite text says."""

    version: Annotated[int, Meta(ge=1, le=1)] = 1
    genesis: Genesis
    addresses: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(min_length=1, max_length=16)
    ]
    """Multiaddrs of the inviting peer, each ending in `/p2p/<id>`."""
    token: TokenField
    expires_ms: TimeMsField

    def text(self) -> str:
        """One line to hand over: prefix and URL-safe base64 of checksum and canonical bytes."""
        body = canonical.encode(self)
        return PREFIX + base64.urlsafe_b64encode(_checksum(body) + body).decode().rstrip("=")


def parse_invite(text: str) -> Invite:
    """The invite that `text` spells; white space that a mail program put in is passed over.

    Raises:
        InviteError: cut short, mistyped, of another version, or no invite at all. The token is never shown.
    """
    line = "".join(text.split())
    if not line.startswith(PREFIX):
        raise InviteError("this is not an invite", hint=f"an invite is one line that starts with {PREFIX}")
    coded = line.removeprefix(PREFIX)
    if len(coded) > MAX_INVITE_BYTES * 4 // 3 + 4:
        raise InviteError(f"an invite of {len(coded)} characters is too long")
    try:
        raw = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _mistyped() from None
    checksum, body = raw[:CHECKSUM_BYTES], raw[CHECKSUM_BYTES:]
    if checksum != _checksum(body):
        raise _mistyped()
    try:
        invite = canonical.decode(body, Invite, limit_bytes=MAX_INVITE_BYTES)
    except EncodingError as error:
        raise InviteError(f"this invite cannot be read: {error}", hint="both sides need the same version") from None
    # Base64's last character has spare bits, and decoders pass over some of what follows it.
    if invite.text() != line:
        raise _mistyped()
    return invite


def save_pending(data_dir: Path, invite: Invite) -> None:
    """Keep an invite that `nsllm join` took until the peer has redeemed it (mode 0600: it holds the token)."""
    write_atomic(data_dir / PENDING_FILE, canonical.encode(invite))


def pending_invite(data_dir: Path) -> Invite | None:
    """The invite that the peer has still to redeem.

    Raises:
        InviteError: the file is damaged.
    """
    path = data_dir / PENDING_FILE
    if not path.exists():
        return None
    try:
        data = read_bounded(path, limit_bytes=MAX_INVITE_BYTES)
        return canonical.decode(data, Invite, limit_bytes=MAX_INVITE_BYTES)
    except EncodingError:
        raise InviteError(f"{path} is damaged", hint="run `nsllm join` with the invite again") from None


def clear_pending(data_dir: Path) -> None:
    """Forget the invite, once it is redeemed."""
    (data_dir / PENDING_FILE).unlink(missing_ok=True)


class InviteEntry(Value, frozen=True, kw_only=True):
    """One invite in the book."""

    token_hash: DigestField
    expires_ms: TimeMsField
    admission: Admission | None = None
    """Whom it admitted; None while it is open."""


class Book(Value, frozen=True, kw_only=True):
    """The file's content."""

    entries: Annotated[tuple[InviteEntry, ...], Meta(max_length=MAX_OPEN_INVITES)] = ()


class InviteBook:
    """Open and used invites of one inviting member. Blocking and thread-safe: call it through `Offload`."""

    def __init__(
        self,
        path: Path,
        *,
        key: MemberKey,
        genesis: Genesis,
        clock: Clock,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Open the book at `path`, empty if there is none yet.

        Raises:
            InviteError: the file is damaged.
        """
        self._path = path
        self._key = key
        self._genesis = genesis
        self._network: NetworkId = genesis.network_id()
        self._clock = clock
        self._random_bytes = random_bytes
        self._guard = threading.Lock()
        self._entries = self._load()

    def create(self, addresses: Sequence[str], *, ttl_s: int = DEFAULT_TTL_S) -> Invite:
        """A new invite, good for one member during `ttl_s` seconds.

        Raises:
            InviteError: we are no genesis member (our admissions would not count), no address, or too many are open.
            OwnFault: the book cannot be written; then there is no invite.
        """
        if all(member.address != self._key.address for member in self._genesis.members):
            raise InviteError("this peer is not a genesis member", hint="only genesis members can invite")
        if not addresses:
            raise InviteError("this peer has no address that another could dial yet")
        now_ms = self._clock.now_ms()
        token = self._random_bytes(TOKEN_BYTES)
        expires_ms = TimeMs(now_ms + ttl_s * 1000)
        with self._guard:
            entries = [entry for entry in self._entries if entry.expires_ms > now_ms or entry.admission]
            while len(entries) >= MAX_OPEN_INVITES:
                used = next((i for i, entry in enumerate(entries) if entry.admission), None)
                if used is None:
                    raise InviteError(f"{MAX_OPEN_INVITES} invites are open", hint="wait until some expire")
                del entries[used]
            self._save([*entries, InviteEntry(token_hash=_token_hash(token), expires_ms=expires_ms)])
        return Invite(genesis=self._genesis, addresses=tuple(addresses)[:16], token=token, expires_ms=expires_ms)

    def redeem(self, token: bytes, member: Member) -> Admission:
        """Admit `member` for a token, once; the same member gets the same admission again.

        The caller has checked that the member holds both of its keys.

        Raises:
            InviteError: unknown, expired or used token, a role or more slots than an admission grants.
            OwnFault: the book cannot be written; then the token is still good.
        """
        if "validator" in member.roles:
            raise InviteError("an invite cannot grant the validator role", hint="ask for contributor and data")
        if member.slots > DEFAULT_SLOTS:
            raise InviteError(f"an invite grants {DEFAULT_SLOTS} slots, asked for were {member.slots}")
        hashed = _token_hash(token)
        with self._guard:
            for i, entry in enumerate(self._entries):
                if not hmac.compare_digest(entry.token_hash, hashed):
                    continue
                if entry.admission is not None:
                    if entry.admission.member == member:
                        return entry.admission
                    raise InviteError("this invite was used already", hint="ask for another")
                if entry.expires_ms <= self._clock.now_ms():
                    raise InviteError("this invite has expired", hint="ask for another")
                admission = admit(self._key, self._network, member)
                self._save([*self._entries[:i], replace(entry, admission=admission), *self._entries[i + 1 :]])
                return admission
        raise InviteError("this invite is not known here", hint="ask the peer that made it for another")

    def admissions(self) -> tuple[Admission, ...]:
        """Everybody whom this book admitted, oldest invite first."""
        with self._guard:
            return tuple(entry.admission for entry in self._entries if entry.admission is not None)

    def _load(self) -> list[InviteEntry]:
        if not self._path.exists():
            return []
        try:
            data = read_bounded(self._path, limit_bytes=MAX_BOOK_BYTES)
            return list(canonical.decode(data, Book, limit_bytes=MAX_BOOK_BYTES).entries)
        except EncodingError as error:
            raise InviteError(
                f"{self._path} is damaged: {error}", hint="move it away; open invites are then void"
            ) from None

    def _save(self, entries: list[InviteEntry]) -> None:
        """File first: what a caller learns of is on disk."""
        write_atomic(self._path, canonical.encode(Book(entries=tuple(entries))))
        self._entries = entries


def _token_hash(token: bytes) -> Digest:
    return Digest(hashlib.sha256(b"nsllm/1/invite-token\0" + token).digest())


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:CHECKSUM_BYTES]


def _mistyped() -> InviteError:
    return InviteError("this invite is cut short or mistyped", hint="copy the whole line again")
