"""How this peer came to be a member, and how it lets others in: invites given out, an invite redeemed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import trio

from nsllm import canonical
from nsllm.consensus.registry import Admission, Member
from nsllm.errors import EncodingError, NsllmError
from nsllm.files import read_bounded, write_atomic
from nsllm.node.context import PeerContext
from nsllm.node.errors import InvalidRequestError, InviteError
from nsllm.node.invitation import BOOK_FILE, Invite, InviteBook, clear_pending, pending_invite
from nsllm.p2p.directory import PeerDirectory
from nsllm.p2p.network import Network
from nsllm.p2p.protocols.join import JOIN, join, serve_join

log = logging.getLogger(__name__)

ADMISSION_FILE: Final = "admission"
MAX_ADMISSION_BYTES: Final = 4096
RETRY_S: Final = 5.0
RETRY_CAP_S: Final = 60.0
"""An inviter that is away, or refuses, is asked again after `RETRY_S`, then after twice as long, up to this."""
JOIN_DEADLINE_S: Final = 30.0


class Membership:
    """Gives out invites if the genesis lists us; redeems the invite that `nsllm join` left, if there is one."""

    def __init__(
        self,
        *,
        context: PeerContext,
        folder: Path,
        network: Network,
        directory: PeerDirectory,
        on_own_admission: Callable[[Admission], None],
        on_admission: Callable[[Admission], None],
    ) -> None:
        self._context = context
        self._folder = folder
        self._network = network
        self._directory = directory
        self._on_own_admission = on_own_admission
        self._on_admission = on_admission
        self._book: InviteBook | None = None
        self.notice: str | None = None
        """Why we are no member yet although we hold an invite; None if there is nothing to say."""
        if any(member.address == context.address for member in context.genesis.members):
            self._book = InviteBook(
                folder / BOOK_FILE,
                key=context.key,
                genesis=context.genesis,
                clock=context.clock,
            )
            network.handle(JOIN, serve_join(context.genesis, self._admit))

    async def invite(self) -> str:
        """A one-time invite to this network.

        Raises:
            InvalidRequestError: we are not a genesis member, or nobody could reach us.
        """
        book, addresses = self._book, self._network.addresses()
        if book is None:
            raise InvalidRequestError("only a genesis member can admit others", hint="ask one of them for an invite")
        if not addresses:
            raise InvalidRequestError("this peer listens nowhere", hint="set p2p.listen")
        invite: Invite = await self._context.offload.run(lambda: book.create(addresses))
        return invite.text()

    async def run(self) -> None:
        """Bring back admissions from the last run, redeem a pending invite; returns once there is nothing to do."""
        kept = await self._context.offload.run(self._load)
        if kept is not None:
            self._on_own_admission(kept)
        book = self._book
        if book is not None:
            for admission in await self._context.offload.run(book.admissions):
                self._on_admission(admission)
        invite = await self._context.offload.run(lambda: pending_invite(self._folder))
        pause_s = RETRY_S
        while invite is not None and kept is None:
            kept = await self._redeem(invite)
            if kept is None:
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_CAP_S)

    async def _redeem(self, invite: Invite) -> Admission | None:
        context = self._context
        ourselves = Member(address=context.address, peer_id=self._network.peer_id, roles=("contributor", "data"))
        for address in invite.addresses:
            try:
                with trio.fail_after(JOIN_DEADLINE_S):
                    peer = await self._network.connect(address)
                    token = invite.token.hex()
                    welcome = await join(self._network, peer, context.network_id, token, ourselves, key=context.key)
            except (NsllmError, trio.TooSlowError) as error:
                reason = str(error) or "no answer in time"
                self.notice = f"not a member yet: {reason}; if it stays so, join again with a new invite"
                context.events.emit("join_failed", address=address, reason=reason)
                continue
            self.notice = None
            admission = welcome.admission
            await context.offload.run(partial(self._save, admission))
            self._on_own_admission(admission)
            context.events.emit("joined", by=peer)
            return admission
        return None

    async def _admit(self, token: str, member: Member) -> Admission | str:
        book = self._book
        assert book is not None  # the handler is served only with a book
        try:
            secret = bytes.fromhex(token)
        except ValueError:
            return "a token is hexadecimal digits"
        try:
            admission = await self._context.offload.run(lambda: book.redeem(secret, member))
        except InviteError as error:
            self._context.events.emit("admission_refused", peer=member.peer_id, reason=error.message)
            return str(error)
        self._on_admission(admission)
        self._context.events.emit("member_admitted", peer=member.peer_id)
        return admission

    def _save(self, admission: Admission) -> None:
        write_atomic(self._folder / ADMISSION_FILE, canonical.encode(admission))
        clear_pending(self._folder)

    def _load(self) -> Admission | None:
        path = self._folder / ADMISSION_FILE
        if not path.exists():
            return None
        try:
            data = read_bounded(path, limit_bytes=MAX_ADMISSION_BYTES)
            return canonical.decode(data, Admission, limit_bytes=MAX_ADMISSION_BYTES)
        except EncodingError:
            raise InviteError(f"{path} is damaged", hint="join again with a new invite") from None
