"""Motions at this peer: made and approved with its member key, shared among validators, sent again until decided."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import trio

from nsllm import canonical
from nsllm.consensus.registry import Member
from nsllm.errors import EncodingError, OwnFault, PeerFault
from nsllm.governance.ledger import Ledger
from nsllm.governance.motion import (
    Action,
    Admit,
    ChangePolicy,
    GovernanceTransaction,
    Motion,
    Retract,
    Revoke,
    Suspend,
    about,
    approve,
    check_possible,
)
from nsllm.governance.motion_store import MAX_MOTION_BYTES
from nsllm.governance.policy import Policy
from nsllm.ids import Address, Digest, TimeMs, hex0x
from nsllm.node.context import PeerContext
from nsllm.node.errors import InvalidRequestError
from nsllm.node.service import Wish

log = logging.getLogger(__name__)

TERM_MS: Final = 7 * 24 * 3600 * 1000
"""A motion that nobody carries within a week is forgotten."""
RESEND_S: Final = 15.0
MAX_POLICY_BYTES: Final = 64 * 1024


class Motions:
    """Between the operator, the ledger's pool of motions and the other validators."""

    def __init__(
        self,
        *,
        context: PeerContext,
        ledger: Ledger,
        share: Callable[[Address, bytes], None],
        due: Callable[[], None],
    ) -> None:
        """Begin with what the ledger holds.

        Args:
            context: who we are.
            ledger: pool of motions.
            share: queues a motion for one validator; never waits.
            due: tells the consensus driver that a block may be due.
        """
        self._context = context
        self._ledger = ledger
        self._share = share
        self._due = due

    async def hear(self, payload: bytes) -> None:
        """Take another validator's motion or approval; on disk when this returns.

        Where our disk refuses, it is not taken: its sender tells it again.

        Raises:
            PeerFault: malformed, or not signed by validators.
        """
        transaction = canonical.decode(payload, GovernanceTransaction, limit_bytes=MAX_MOTION_BYTES)
        try:
            new = await self._ledger.add_motion(transaction)
        except OwnFault as error:
            log.error("motion_not_kept motion=%s error=%s", self._name(transaction.motion), error)
            return
        if new:
            self._context.events.emit("motion_heard", motion=self._name(transaction.motion))
            self._due()

    async def propose(self, wish: Wish) -> Digest:
        """Make a motion, approve it and tell the others; its digest. No crash loses it once this returns.

        Raises:
            InvalidRequestError: we do not validate, or the wish is malformed or cannot be done.
        """
        action = self._action(wish)
        now_ms = self._context.clock.now_ms()
        motion = Motion(
            action=action, proposer=self._context.address, created_ms=now_ms, expires_ms=TimeMs(now_ms + TERM_MS)
        )
        await self._sign(motion)
        return motion.digest(self._context.network_id)

    async def approve(self, digest: str) -> None:
        """Approve a waiting motion. No crash loses the approval once this returns.

        Args:
            digest: 0x and hex digits, or the first eight or more of them.

        Raises:
            InvalidRequestError: we do not validate, or no waiting motion (or more than one) begins so.
        """
        found = [each for each in self._ledger.motions() if self._name(each.motion).startswith(digest.lower())]
        if len(found) != 1 or len(digest) < 10:
            raise InvalidRequestError(
                f"{len(found)} waiting motions begin with {digest[:66]}", hint="see `nsllm governance list`"
            )
        await self._sign(found[0].motion)

    async def view(self) -> dict[str, Any]:
        """Motions that wait and those decided lately, members, and the policy in force."""
        context, network = self._context, self._context.network_id
        return {
            "object": "governance",
            "epoch": context.validators.epoch,
            "approvals_needed": context.policy.approvals_needed(context.validators),
            "waiting": [
                {
                    "motion": self._name(each.motion),
                    "kind": _kind(each.motion.action),
                    "about": hex0x(whom) if (whom := about(each.motion.action)) is not None else None,
                    "proposer": hex0x(each.motion.proposer),
                    "expires_ms": each.motion.expires_ms,
                    "approvals": [hex0x(approval.validator) for approval in each.approvals],
                }
                for each in self._ledger.motions()
            ],
            "decided": [
                {"motion": hex0x(digest), "height": height} for digest, height in await self._ledger.decided_motions()
            ],
            "members": [
                {
                    "address": hex0x(member.address),
                    "peer_id": member.peer_id,
                    "roles": list(member.roles),
                    "weight": member.weight,
                    "validates": member.address in context.validators,
                }
                for member in context.registry.members()
            ],
            "policy": canonical.to_json(context.policy),
            "network": hex0x(network),
        }

    async def run(self) -> None:
        """Tell the others again what we approved, until it is decided."""
        while True:
            await trio.sleep(RESEND_S)
            for transaction in self._ledger.motions():
                if any(approval.validator == self._context.address for approval in transaction.approvals):
                    self._tell(transaction)

    async def _sign(self, motion: Motion) -> None:
        context = self._context
        if not context.is_validator:
            raise InvalidRequestError("only validators move and approve", hint="ask one of the network's validators")
        approval = approve(context.key, context.network_id, motion)
        try:
            check_possible(motion.action, context.registry.state, context.policy)
            await self._ledger.add_motion(GovernanceTransaction(motion=motion, approvals=(approval,)))
        except PeerFault as error:
            raise InvalidRequestError(error.message, hint=error.hint) from None
        name = self._name(motion)
        for transaction in self._ledger.motions():
            if transaction.motion == motion:
                self._tell(transaction)
        context.events.emit("motion_approved", motion=name, what=_kind(motion.action))
        self._due()

    def _tell(self, transaction: GovernanceTransaction) -> None:
        payload = canonical.encode(transaction)
        for validator in self._context.validators.members:
            if validator != self._context.address:
                self._share(validator, payload)

    def _name(self, motion: Motion) -> str:
        return hex0x(motion.digest(self._context.network_id))

    def _action(self, wish: Wish) -> Action:
        if wish.kind == "policy":
            return ChangePolicy(policy=_policy(wish.policy))
        if wish.kind == "retract":
            return Retract(record=record_named(wish.record))
        address = _address(wish.address)
        match wish.kind:
            case "admit":
                return Admit(member=self._member(address, wish))
            case "revoke":
                return Revoke(address=address)
            case "suspend":
                return Suspend(address=address)
            case _:
                raise InvalidRequestError(
                    f"no motion of kind {wish.kind!r}", hint="admit, policy, retract, revoke or suspend"
                )

    def _member(self, address: Address, wish: Wish) -> Member:
        known = self._context.registry.get(address)
        peer_id = wish.peer_id or (known.peer_id if known is not None else None)
        roles = tuple(sorted(set(wish.roles))) or (known.roles if known is not None else ())
        if peer_id is None or not roles:
            raise InvalidRequestError(
                f"{hex0x(address)} is no member: who is it?", hint="give its peer id and its roles"
            )
        slots = {"slots": known.slots} if known is not None else {}
        plain = {"address": address, "peer_id": peer_id, "roles": roles, "weight": 1, **slots}
        try:
            return canonical.from_plain(plain, Member)
        except EncodingError as error:
            raise InvalidRequestError(error.message) from None


def _kind(action: Action) -> str:
    match action:
        case Admit():
            return "admit"
        case ChangePolicy():
            return "policy"
        case Retract():
            return "retract"
        case Revoke():
            return "revoke"
        case Suspend():
            return "suspend"


def record_named(text: str | None) -> Digest:
    """The digest that an operator spelled.

    Raises:
        InvalidRequestError: it is none.
    """
    try:
        digest = bytes.fromhex((text or "").removeprefix("0x"))
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise InvalidRequestError(
            f"a record's digest is 0x and 64 hex digits, not {(text or '')[:70]!r}",
            hint="it stands in the receipt, and `nsllm verify` prints it",
        )
    return Digest(digest)


def _address(text: str | None) -> Address:
    try:
        address = bytes.fromhex((text or "").removeprefix("0x"))
    except ValueError:
        address = b""
    if len(address) != 20:
        raise InvalidRequestError("a member's address is 0x and 40 hex digits", hint="see `nsllm governance list`")
    return Address(address)


def _policy(text: str | None) -> Policy:
    try:
        return canonical.from_json(text or "", Policy, limit_bytes=MAX_POLICY_BYTES, exact=False)
    except EncodingError as error:
        raise InvalidRequestError(error.message, hint="begin with what `nsllm governance policy` prints") from None
