"""Scopes: within which circle a question is asked. The network as a whole, or one of the groups that this peer is in.

Groups are looked up in the data folder when they are needed, so a running peer learns of one that was just joined.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from nsllm.cache_dht.group import Group
from nsllm.cache_dht.sealed import Sealed
from nsllm.cache_dht.store import RecordStore
from nsllm.errors import NsllmError
from nsllm.ids import Digest
from nsllm.node.context import PeerContext
from nsllm.node.errors import InvalidRequestError
from nsllm.node.federated_cache import FederatedCache
from nsllm.node.group_cache import GroupCache, GroupLinks
from nsllm.node.groups import GroupFolder
from nsllm.node.links import MemberLinks
from nsllm.node.scope import Scope
from nsllm.node.vault import Vault
from nsllm.p2p.network import Network
from nsllm.record import SignedRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GroupParts:
    """What every group's scope is made of."""

    context: PeerContext
    network: Network
    links: MemberLinks
    vault: Vault
    whole: FederatedCache
    open_store: Callable[[Path], RecordStore]
    """Blocking; raises `StoreError`."""


class Scopes:
    """The circles of one peer."""

    def __init__(self, *, parts: GroupParts, folder: GroupFolder, default: str) -> None:
        """No group is known yet.

        Args:
            parts: what scopes are made of.
            folder: the data folder's groups.
            default: the group of requests that name none; empty: the only one there is.
        """
        self._parts = parts
        self._folder = folder
        self._default = default
        self._groups: dict[bytes, tuple[Scope, RecordStore]] = {}
        """By key."""
        self._stamp = -1
        self._lock = trio.Lock()
        self.public: Final = Scope(None, parts.whole, parts.links, parts.links)

    async def named(self, name: str) -> Scope:
        """The scope of a group; of the default one, if `name` is empty.

        Raises:
            InvalidRequestError: this peer is in no such group, or in several and none is meant.
        """
        await self.refresh()
        scopes = [scope for scope, _ in self._groups.values()]
        wanted = name or self._default
        if not wanted and len(scopes) == 1:
            return scopes[0]
        found = next((scope for scope in scopes if scope.name == wanted), None)
        if found is not None:
            return found
        known = ", ".join(sorted(scope.name for scope in scopes)) or "none"
        raise InvalidRequestError(
            f"this peer is in no group {wanted[:40]!r}" if wanted else "no group is named, and there is no default one",
            hint=f"its groups: {known}; see `nsllm group`",
            param="visibility",
        )

    def of_record(self, signed: SignedRecord) -> Scope | None:
        """The scope in which a record was made; None if it is of a group that we are not in."""
        if signed.record.visibility == "public":
            return self.public
        return next((scope for scope, _ in self._groups.values() if scope.group and scope.group.owns(signed)), None)

    async def open(self, sealed: Sealed) -> SignedRecord | None:
        """The record in an envelope; None if it is of a group that we are not in.

        Raises:
            PeerFault: what is inside is not what the envelope says.
        """
        await self.refresh()
        for scope, _ in self._groups.values():
            assert scope.group is not None
            signed = scope.group.open(self._parts.context.network_id, sealed)
            if signed is not None:
                return signed
        return None

    def pad_s(self) -> float:
        """What strangers' look-ups are padded to: the most that one of our groups asks for."""
        return max((scope.group.pad_ms for scope, _ in self._groups.values() if scope.group), default=0) / 1000

    async def refresh(self) -> None:
        """Learn of groups that were joined or left since; a file that is none is told and passed over."""
        if self._folder.stamp() == self._stamp:
            return
        async with self._lock:
            stamp = self._folder.stamp()
            try:
                groups = await self._parts.context.offload.run(self._folder.load)
                for group in groups:
                    if group.key not in self._groups:
                        self._groups[group.key] = await self._enter(group)
            except NsllmError as error:
                log.error("groups_unreadable error=%s", error)
                return
            for key in set(self._groups) - {group.key for group in groups}:
                scope, store = self._groups.pop(key)
                await self._parts.context.offload.run(store.close)
                self._parts.context.events.emit("group_left", group=scope.name)
            self._stamp = stamp

    async def erase(self, records: Sequence[Digest]) -> tuple[Digest, ...]:
        """Delete revoked records from every group's store; which of them were there. Raises `StoreError`."""
        await self.refresh()
        found: dict[Digest, None] = {}
        for _, store in tuple(self._groups.values()):
            found.update(dict.fromkeys(await store.erase(records)))
        return tuple(found)

    async def holds(self, record: Digest) -> bool:
        """Whether a group's store has the record. Raises `StoreError`."""
        return any([await store.holds(record) for _, store in tuple(self._groups.values())])

    async def close(self) -> None:
        """Close the groups' stores."""
        while self._groups:
            _, (_, store) = self._groups.popitem()
            await self._parts.context.offload.run(store.close)

    async def _enter(self, group: Group) -> tuple[Scope, RecordStore]:
        parts = self._parts
        store = await parts.context.offload.run(lambda: parts.open_store(self._folder.path / f"{group.name}.sqlite"))
        links = GroupLinks(parts.context, group, parts.links)
        cache = GroupCache(
            context=parts.context,
            store=store,
            network=parts.network,
            links=links,
            vault=parts.vault,
            whole=parts.whole,
        )
        parts.context.events.emit("group_entered", group=group.name)
        return Scope(group, cache, links, links), store
