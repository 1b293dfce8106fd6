"""The devnet: its folders, its processes, and that none of them outlives it. Peers are a small stand-in program."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import trio

from nsllm.errors import UsageError
from nsllm.governance.defaults import default_policy
from nsllm.governance.genesis import load_genesis
from nsllm.ids import Digest, TimeMs
from nsllm.node.config import CONFIG_FILE
from nsllm.node.errors import DataFolderError, PortError
from nsllm.node.identity import locked
from nsllm.node.settings import load_config
from nsllm.p2p.tcp_port import is_free
from nsllm.simulations import devnet as module
from nsllm.simulations.devnet import Devnet, DevnetEvent, lay_out, log_tail, run_devnet
from nsllm.simulations.errors import DevnetError

POLICY = default_policy(Digest(bytes(32)), Digest(bytes(32)))

PEER = """
import sys, threading, os, time, signal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import trio
from nsllm.cli.lifetime import end_with_parent, serve
from nsllm.node.settings import load_config

folder = Path(sys.argv[sys.argv.index("--data-dir") + 1])
config = load_config(folder)
todo = (folder / "todo").read_text() if (folder / "todo").exists() else ""
if todo == "crash":
    print("something is very wrong", flush=True)
    sys.exit(3)

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        self.send_response(503 if todo == "unready" else 200)
        self.end_headers()
        self.wfile.write(b'{"detail": "engine loads"}')

server = ThreadingHTTPServer((config.api.host, config.api.port), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("serving", flush=True)
if todo == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
end_with_parent()
serve(trio.sleep_forever, stop_s=2)
"""

DEVNET = """
import sys
from pathlib import Path
from nsllm.cli.lifetime import serve
from nsllm.governance.defaults import default_policy
from nsllm.clock import SystemClock
from nsllm.simulations.devnet import lay_out, run_devnet
import trio

folder, port, program = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
policy = lambda: default_policy(bytes(32), bytes(32))
laid = lay_out(folder, peers=2, base_port=port, policy=policy, clock=SystemClock())

async def main():
    async with trio.open_nursery() as nursery:
        pids = await nursery.start(lambda task_status: run_devnet(
            laid, lambda event: None, command=(sys.executable, program), task_status=task_status))
        print(*pids, flush=True)

serve(main, stop_s=4.8)
"""


class FixedClock:
    def now_ms(self) -> TimeMs:
        return TimeMs(1_700_000_000_000)


@pytest.fixture
def base_port() -> int:
    """Free ports, three in a row; offset by process id so that parallel runs keep apart."""
    first = 21_000 + os.getpid() % 900 * 10
    for port in range(first, 31_000, 10):
        if all(is_free("127.0.0.1", port + i) for i in range(3)):
            return port
    raise AssertionError("no three free ports in a row")


@pytest.fixture
def program(tmp_path: Path) -> tuple[str, str]:
    path = tmp_path / "peer.py"
    path.write_text(PEER)
    return (sys.executable, str(path))


def laid_out(folder: Path, base_port: int, peers: int = 2) -> Devnet:
    return lay_out(folder, peers=peers, base_port=base_port, policy=lambda: POLICY, clock=FixedClock())


def test_the_layout_that_scripts_rely_on(tmp_path: Path, base_port: int) -> None:
    devnet = laid_out(tmp_path / "net", base_port, peers=3)
    assert devnet.fresh
    genesis = load_genesis(tmp_path / "net" / "genesis.json")
    assert genesis.local
    assert {member.peer_id for member in genesis.members} == {peer.peer_id for peer in devnet.peers}
    assert genesis.registry().validators().size == 3
    for i, peer in enumerate(devnet.peers):
        assert peer.data_dir == tmp_path / "net" / f"peer-{i}"
        assert peer.url == f"http://127.0.0.1:{base_port + i}"
        config = load_config(peer.data_dir)
        assert (config.name, config.visibility, config.api.port) == (f"peer-{i}", "public", base_port + i)
        assert config.p2p.listen == (peer.multiaddr.partition("/p2p/")[0],)
        assert set(config.p2p.bootstrap) == {other.multiaddr for other in devnet.peers if other is not peer}
        assert load_genesis(config.genesis_path) == genesis
        assert peer.data_dir.stat().st_mode & 0o777 == 0o700


def test_a_second_call_takes_up_what_is_there(tmp_path: Path, base_port: int) -> None:
    first = laid_out(tmp_path, base_port)
    path = tmp_path / "peer-1" / CONFIG_FILE
    path.write_text(path.read_text().replace('visibility = "public"', 'visibility = "group"\nlog_level = "debug"'))
    again = laid_out(tmp_path, base_port + 1)
    assert not again.fresh
    assert again.genesis == first.genesis
    assert [peer.multiaddr for peer in again.peers] == [peer.multiaddr for peer in first.peers]
    config = load_config(tmp_path / "peer-1")
    assert (config.visibility, config.log_level, config.api.port) == ("group", "debug", base_port + 2)


def test_a_founding_that_was_cut_off_is_finished(tmp_path: Path, base_port: int) -> None:
    first = laid_out(tmp_path, base_port)
    (tmp_path / "genesis.json").unlink()
    again = laid_out(tmp_path, base_port)
    assert again.fresh
    assert again.genesis == first.genesis  # same keys, same clock, same policy


@pytest.mark.parametrize(
    ("peers", "offset", "says"), [(0, 0, "0 peers"), (65, 0, "65 peers"), (2, 99_999, "base port")]
)
def test_what_cannot_be(tmp_path: Path, base_port: int, peers: int, offset: int, says: str) -> None:
    with pytest.raises(DevnetError, match=says):
        laid_out(tmp_path, base_port + offset, peers)


def test_another_number_of_peers_is_refused(tmp_path: Path, base_port: int) -> None:
    laid_out(tmp_path, base_port)
    with pytest.raises(DevnetError, match="has 2 peers, asked for 3"):
        laid_out(tmp_path, base_port, peers=3)


def test_a_lost_folder_is_noticed(tmp_path: Path, base_port: int) -> None:
    laid_out(tmp_path, base_port)
    (tmp_path / "peer-1").rename(tmp_path / "gone")
    with pytest.raises(DevnetError, match="not those of its genesis"):
        laid_out(tmp_path, base_port)


def test_busy_ports_are_named_before_anything_starts(tmp_path: Path, base_port: int) -> None:
    with (
        socket.create_server(("127.0.0.1", base_port + 1)),
        pytest.raises(PortError, match=f"port {base_port + 1} ") as e,
    ):
        laid_out(tmp_path / "new", base_port)
    assert isinstance(e.value, UsageError)
    assert not (tmp_path / "new" / "genesis.json").exists()
    devnet = laid_out(tmp_path / "new", base_port)
    port = int(devnet.peers[0].multiaddr.split("/")[4])
    with socket.create_server(("127.0.0.1", port)), pytest.raises(PortError, match=str(port)):
        laid_out(tmp_path / "new", base_port)


def test_a_folder_in_use_is_refused(tmp_path: Path, base_port: int) -> None:
    laid_out(tmp_path, base_port)
    with locked(tmp_path / "peer-1"), pytest.raises(DataFolderError, match="another peer"):
        laid_out(tmp_path, base_port)


def test_the_end_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("\n".join(f"line {i}" for i in range(10_000)))
    assert log_tail(path, 2) == "line 9998\nline 9999"
    assert "No such file" in log_tail(tmp_path / "nowhere")


async def test_all_start_and_all_stop(tmp_path: Path, base_port: int, program: tuple[str, str]) -> None:
    devnet = laid_out(tmp_path / "net", base_port)
    events: list[DevnetEvent] = []
    async with trio.open_nursery() as nursery:
        pids = await nursery.start(start(devnet, events, program))
        assert sorted(event.peer for event in events if event.kind == "ready") == [0, 1]
        assert all(psutil.pid_exists(pid) for pid in pids)
        nursery.cancel_scope.cancel()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert "serving" in devnet.peers[0].log.read_text()
    assert devnet.peers[0].log.stat().st_mode & 0o777 == 0o600


async def test_a_peer_that_exits_is_reported_with_its_log(
    tmp_path: Path, base_port: int, program: tuple[str, str]
) -> None:
    devnet = laid_out(tmp_path / "net", base_port)
    events: list[DevnetEvent] = []
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            pids = await nursery.start(start(devnet, events, program))
            os.kill(pids[1], signal.SIGKILL)
            while not any(event.kind == "exited" for event in events):
                await trio.sleep(0.01)
            (exited,) = [event for event in events if event.kind == "exited"]
            assert exited.peer == 1
            assert "on SIGKILL" in exited.detail
            assert "serving" in exited.detail
            assert psutil.pid_exists(pids[0])
            os.kill(pids[0], signal.SIGTERM)
    assert caught.group_contains(DevnetError, match="every peer has exited")


async def test_a_peer_that_cannot_start_fails_the_start(
    tmp_path: Path, base_port: int, program: tuple[str, str]
) -> None:
    devnet = laid_out(tmp_path / "net", base_port)
    (devnet.peers[1].data_dir / "todo").write_text("crash")
    with pytest.raises(ExceptionGroup) as caught:
        await run_devnet(devnet, lambda event: None, command=program)
    assert caught.group_contains(DevnetError, match="(?s)peer 1 exited with status 3 .*something is very wrong")


async def test_a_peer_that_never_gets_ready_is_named(tmp_path: Path, base_port: int, program: tuple[str, str]) -> None:
    devnet = laid_out(tmp_path / "net", base_port)
    (devnet.peers[1].data_dir / "todo").write_text("unready")
    events: list[DevnetEvent] = []
    with pytest.raises(ExceptionGroup) as caught:
        await run_devnet(devnet, events.append, ready_s=2, command=program)
    assert caught.group_contains(DevnetError, match="not ready after 2 s: peer 1: engine loads")
    assert DevnetEvent("waiting", 1, "engine loads") in events


async def test_a_deaf_peer_is_killed(
    tmp_path: Path, base_port: int, program: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_S", 0.3)
    devnet = laid_out(tmp_path / "net", base_port)
    (devnet.peers[0].data_dir / "todo").write_text("deaf")
    async with trio.open_nursery() as nursery:
        pids = await nursery.start(start(devnet, [], program))
        nursery.cancel_scope.cancel()
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_peer_outlives_the_devnet(
    tmp_path: Path, base_port: int, program: tuple[str, str], how: signal.Signals
) -> None:
    script = tmp_path / "devnet.py"
    script.write_text(DEVNET)
    command = [sys.executable, str(script), str(tmp_path / "net"), str(base_port), program[1]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    peers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    assert len(peers) == 2
    process.send_signal(how)
    assert process.wait(timeout=10) == (-how if how is signal.SIGKILL else 0)
    process.stdout.close()
    _, alive = psutil.wait_procs(peers, timeout=10)
    assert not alive


def start(devnet: Devnet, events: list[DevnetEvent], program: tuple[str, str]):
    """`run_devnet` with its arguments, as `nursery.start` calls it."""

    async def run(task_status: trio.TaskStatus) -> None:
        await run_devnet(devnet, events.append, command=program, task_status=task_status)

    return run
