"""Group keys in the data folder: one file of mode 0600 a group, made, given on by an invite, and deleted. Blocking."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from nsllm.cache_dht.group import KEY_BYTES, Group
from nsllm.errors import UsageError
from nsllm.files import private_folder, read_bounded, write_atomic

GROUPS_FOLDER: Final = "groups"
KEY_SUFFIX: Final = ".key"
INVITE_PREFIX: Final = "nsllm-group:"
MAX_GROUPS: Final = 64
"""An envelope that says of which group it is would tell everybody; so all keys are tried."""
MAX_PAD_MS: Final = 10_000
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_HEX: Final = re.compile(rf"[0-9a-f]{{{2 * KEY_BYTES}}}")


class GroupFolder:
    """The groups of one data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.path: Final = data_dir / GROUPS_FOLDER

    def load(self) -> tuple[Group, ...]:
        """Every group, ascending by name.

        Raises:
            UsageError: a file that is no group's key, by name.
        """
        files = sorted(self.path.glob(f"*{KEY_SUFFIX}")) if self.path.is_dir() else []
        return tuple(self._read(file) for file in files)

    def stamp(self) -> int:
        """Another number once a group came or went."""
        try:
            return self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def create(self, name: str, key: bytes, pad_ms: int = 0) -> Group:
        """A new group with a fresh random key.

        Raises:
            UsageError: a name that is none or is taken, or too many groups.
        """
        return self._write(Group(_named(name), key, _padding(pad_ms)))

    def join(self, invite: str, name: str | None = None) -> Group:
        """The group that an invite is for, under its name or another.

        Raises:
            UsageError: no invite of a group, a name that is taken, or a group that we are in.
        """
        group = parse_group_invite(invite)
        known = next((each for each in self.load() if each.key == group.key), None)
        if known is not None:
            raise UsageError(f"this peer is in that group already, as {known.name!r}")
        return self._write(replace(group, name=_named(name)) if name else group)

    def leave(self, name: str) -> None:
        """Delete a group's key, and what was kept of its records. What others hold stays, sealed.

        Raises:
            UsageError: no such group.
        """
        self.named(name)
        self._file(name).unlink()
        for file in self.path.glob(f"{name}.sqlite*"):
            file.unlink(missing_ok=True)

    def named(self, name: str) -> Group:
        """One group.

        Raises:
            UsageError: there is none of this name.
        """
        found = next((group for group in self.load() if group.name == name), None)
        if found is None:
            names = ", ".join(group.name for group in self.load()) or "none"
            raise UsageError(f"no group {name[:40]!r} here; there is {names}", hint="see `nsllm group list`")
        return found

    def _write(self, group: Group) -> Group:
        groups = self.load()
        if any(each.name == group.name for each in groups):
            raise UsageError(f"there is a group {group.name!r} here", hint="choose another name")
        if len(groups) >= MAX_GROUPS:
            raise UsageError(f"a peer is in {MAX_GROUPS} groups at most", hint="leave one: `nsllm group leave NAME`")
        private_folder(self.path)
        write_atomic(self._file(group.name), f"{group_invite(group)}\n".encode())
        return group

    def _read(self, file: Path) -> Group:
        try:
            return parse_group_invite(read_bounded(file, limit_bytes=1024).decode("ascii", "replace"))
        except UsageError as error:
            raise UsageError(f"{file} holds no group's key", hint=error.hint or "remove the file") from None

    def _file(self, name: str) -> Path:
        return self.path / f"{_named(name)}{KEY_SUFFIX}"


def group_invite(group: Group) -> str:
    """One line that lets another peer join. Whoever reads it reads the group."""
    return f"{INVITE_PREFIX}{group.name}:{group.key.hex()}:{group.pad_ms}"


def parse_group_invite(text: str) -> Group:
    """The group of an invite.

    Raises:
        UsageError: it is none; its text is not repeated, since it may be half a key.
    """
    parts = text.strip().removeprefix(INVITE_PREFIX).split(":")
    if not text.strip().startswith(INVITE_PREFIX) or len(parts) != 3 or not _HEX.fullmatch(parts[1]):
        raise UsageError(
            f"{len(text)} characters that are no invite of a group",
            hint=f"`nsllm group invite NAME` prints one; it begins with {INVITE_PREFIX}",
        )
    pad_ms = int(parts[2]) if parts[2].isdecimal() and len(parts[2]) < 8 else -1
    return Group(_named(parts[0]), bytes.fromhex(parts[1]), _padding(pad_ms))


def _named(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name[:40]!r} is no name of a group", hint="use up to 32 of a-z, 0-9, - and _")
    return name


def _padding(pad_ms: int) -> int:
    if not 0 <= pad_ms <= MAX_PAD_MS:
        raise UsageError(f"strangers' answers cannot be padded to {pad_ms} ms", hint=f"use 0 to {MAX_PAD_MS}")
    return pad_ms
