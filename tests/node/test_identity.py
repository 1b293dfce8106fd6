"""A peer's keys: made once, kept private, damage noticed and never shown; one peer a folder."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from nsllm.node.errors import DataFolderError, KeyFileError
from nsllm.node.identity import Identity, admin_key_path, locked, new_identity, open_identity, read_admin_key

KEY_FILES = ("libp2p.key", "member.key", "admin.key")


def same(one: Identity, other: Identity) -> bool:
    return (one.peer_id, one.address, one.admin_key, one.libp2p_secret) == (
        other.peer_id, other.address, other.admin_key, other.libp2p_secret,
    )  # fmt: skip


def test_made_once_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "peer"
    first = open_identity(folder)
    assert same(open_identity(folder), first)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "keys").stat().st_mode & 0o777 == 0o700
    for name in KEY_FILES:
        assert (folder / "keys" / name).stat().st_mode & 0o777 == 0o600
    assert read_admin_key(folder) == first.admin_key


def test_the_peer_id_is_the_one_that_libp2p_derives() -> None:
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID

    identity = new_identity(random.Random(1).randbytes)
    assert ID.from_pubkey(create_new_key_pair(identity.libp2p_secret).public_key).to_base58() == identity.peer_id


def test_a_seed_makes_the_same_identity_and_another_seed_another() -> None:
    one, again, other = (new_identity(random.Random(seed).randbytes) for seed in (1, 1, 2))
    assert same(one, again)
    assert one.peer_id != other.peer_id


def test_repr_shows_public_parts_only(tmp_path: Path) -> None:
    identity = open_identity(tmp_path)
    shown = repr(identity)
    assert identity.peer_id in shown
    for secret in (identity.libp2p_secret.hex(), identity.member.secret().hex(), identity.admin_key):
        assert secret not in shown


@pytest.mark.parametrize("name", KEY_FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "binary", "missing"])
def test_damage_is_noticed_and_no_key_shown(tmp_path: Path, name: str, damage: str) -> None:
    identity = open_identity(tmp_path)
    path = tmp_path / "keys" / name
    text = path.read_text()
    secret = text.split("secret ")[-1].split("\n")[0] if name != "admin.key" else text.strip()
    middle = text.index(secret) + 30
    match damage:
        case "flip":
            path.write_text(text[:middle] + ("1" if text[middle] != "1" else "2") + text[middle + 1 :])
        case "cut":
            path.write_text(text[:middle])
        case "empty":
            path.write_text("")
        case "binary":
            path.write_bytes(b"\xff\xfe\x00" * 30)
        case "missing":
            path.unlink()
    with pytest.raises(KeyFileError) as caught:
        open_identity(tmp_path)
    assert str(path) in str(caught.value)
    assert secret[:20] not in str(caught.value)
    assert identity.peer_id  # the files were whole before


def test_rights_of_others_are_taken_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_identity(tmp_path)
    path = tmp_path / "keys" / "member.key"
    path.chmod(0o644)
    open_identity(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert "key_file_mode" in caplog.text


def test_a_link_is_refused(tmp_path: Path) -> None:
    open_identity(tmp_path)
    path = admin_key_path(tmp_path)
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(KeyFileError, match="not a plain file"):
        open_identity(tmp_path)


def test_an_unfinished_creation_is_started_again(tmp_path: Path) -> None:
    fresh = tmp_path / ".keys.new"
    fresh.mkdir()
    (fresh / "libp2p.key").write_text("half a f")
    assert same(open_identity(tmp_path), open_identity(tmp_path))


def test_one_peer_a_folder(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(DataFolderError, match=r"another peer \(process \d+\) runs on"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from nsllm.node.identity import locked\n"
        f"with locked(Path({str(tmp_path)!r})):\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(DataFolderError, match=f"process {holder.pid}"), locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locked(tmp_path):
        pass
