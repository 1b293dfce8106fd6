"""A peer's identity: its libp2p key, its member key and its admin key, made once and kept in the data folder.

Three files of mode 0600 under `keys/`, each secret beside what it proves or with a checksum, so that damage is noticed:
a flipped digit would otherwise be another member. The folder is 0700 and locked by the peer that runs on it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nsllm.crypto import CURVE_ORDER, MemberKey, keccak256
from nsllm.files import private_folder, read_bounded, write_atomic
from nsllm.ids import Address, PeerId, hex0x
from nsllm.node.errors import DataFolderError, KeyFileError
from nsllm.p2p.identity import PeerKey

logger = logging.getLogger(__name__)

KEYS_FOLDER: Final = "keys"
LOCK_FILE: Final = "lock"
MAX_KEY_FILE_BYTES: Final = 4096
ADMIN_PREFIX: Final = "nsllm-admin-"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a peer is. `repr` shows public parts only."""

    libp2p_secret: bytes = field(repr=False)
    """Ed25519 seed, 32 bytes."""
    member: MemberKey
    admin_key: str = field(repr=False)
    """What the HTTP header `X-NSLLM-Admin-Key` must carry for votes, invites, plugins and settings."""
    peer_id: PeerId
    """Derived from the Ed25519 public key."""

    @property
    def address(self) -> Address:
        """The member's address."""
        return self.member.address


def new_identity(random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> Identity:
    """A fresh identity that no file holds; `random_bytes(n)` comes from a seeded source in a simulation."""
    seed = random_bytes(32)
    secret = random_bytes(32)
    # A draw outside 1..order-1 has probability 2^-128.
    while not 0 < int.from_bytes(secret, "big") < CURVE_ORDER:
        secret = random_bytes(32)
    return _identity(seed, MemberKey(secret), _admin_key(random_bytes(24).hex()))


def open_identity(data_dir: Path, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> Identity:
    """The identity of the peer that lives in `data_dir`, made on first use. Blocking; hold the folder's lock.

    Raises:
        KeyFileError: damaged, missing, or somebody else's file. Never shows what is in it.
        UsageError: the folder cannot be used.
    """
    folder = private_folder(data_dir) / KEYS_FOLDER
    if not folder.exists():
        # Written beside and renamed: a crash leaves the whole identity or none of it.
        fresh = private_folder(data_dir / f".{KEYS_FOLDER}.new")
        identity = new_identity(random_bytes)
        _write(fresh / "libp2p.key", identity.libp2p_secret.hex(), identity.peer_id)
        _write(fresh / "member.key", identity.member.secret().hex(), hex0x(identity.address))
        write_atomic(fresh / "admin.key", f"{identity.admin_key}\n".encode())
        fresh.rename(folder)
        return identity
    private_folder(folder)
    seed, peer_id = _read_hex(folder / "libp2p.key")
    secret, address = _read_hex(folder / "member.key")
    try:
        identity = _identity(seed, MemberKey(secret), read_admin_key(data_dir))
    except ValueError:
        raise _damaged(folder / "member.key") from None
    if identity.peer_id != peer_id:
        raise _damaged(folder / "libp2p.key")
    if hex0x(identity.address) != address:
        raise _damaged(folder / "member.key")
    return identity


def read_admin_key(data_dir: Path) -> str:
    """The admin key of the peer in `data_dir`, as the CLI finds it.

    Raises:
        KeyFileError: missing or damaged.
    """
    path = admin_key_path(data_dir)
    _guard(path)
    key = read_bounded(path, limit_bytes=MAX_KEY_FILE_BYTES).decode("ascii", "replace").strip()
    if key != _admin_key(key.removeprefix(ADMIN_PREFIX).rpartition("-")[0]):
        raise _damaged(path)
    return key


def admin_key_path(data_dir: Path) -> Path:
    """Where the admin key of the peer in `data_dir` stands."""
    return data_dir / KEYS_FOLDER / "admin.key"


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Hold `data_dir` for this process alone; the lock goes with the process, however it dies.

    Raises:
        DataFolderError: another peer runs on it; names its process.
    """
    path = private_folder(data_dir) / LOCK_FILE
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            other = os.pread(handle, 20, 0).decode(errors="replace").strip() or "unknown"
            raise DataFolderError(
                f"another peer (process {other}) runs on {data_dir}", hint="stop it, or choose another --data-dir"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _identity(seed: bytes, member: MemberKey, admin_key: str) -> Identity:
    return Identity(libp2p_secret=seed, member=member, admin_key=admin_key, peer_id=PeerKey(seed).peer_id)


def _admin_key(body: str) -> str:
    """The key carries its own checksum, so that damage is noticed without a second file."""
    return f"{ADMIN_PREFIX}{body}-{keccak256(body.encode()).hex()[:8]}"


def _write(path: Path, secret: str, proves: str) -> None:
    note = "# Private key of an NS-LLM peer. Who has it speaks as this peer; two peers must never share it."
    write_atomic(path, f"{note}\nsecret {secret}\nproves {proves}\n".encode())


def _read(path: Path) -> tuple[str, str]:
    """(secret, what it proves), after the file's owner and mode are seen to."""
    _guard(path)
    try:
        lines = read_bounded(path, limit_bytes=MAX_KEY_FILE_BYTES).decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise _damaged(path) from None
    words = [line.split(" ") for line in lines if not line.startswith("#")]
    if [word[0] for word in words] != ["secret", "proves"] or any(len(word) != 2 for word in words):
        raise _damaged(path)
    return words[0][1], words[1][1]


def _read_hex(path: Path) -> tuple[bytes, str]:
    secret, proves = _read(path)
    try:
        raw = bytes.fromhex(secret)
    except ValueError:
        raise _damaged(path) from None
    if len(raw) != 32:
        raise _damaged(path)
    return raw, proves


def _guard(path: Path) -> None:
    """Refuse a file that is not ours; take back rights that others have on ours."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        raise KeyFileError(f"key file {path} is missing", hint="put it back from your backup") from None
    if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid():
        raise KeyFileError(
            f"key file {path} is not a plain file of user {os.geteuid()}",
            hint=f"run the peer as its owner (user {info.st_uid}), or chown the file",
        )
    if info.st_mode & 0o077:
        logger.warning("key_file_mode path=%s mode=%o repaired=600 others_could_read=true", path, info.st_mode & 0o777)
        path.chmod(0o600)


def _damaged(path: Path) -> KeyFileError:
    return KeyFileError(
        f"key file {path} is damaged: the key does not match what stands beside it",
        hint="put it back from your backup; a peer without it has to join again as a new member",
    )
