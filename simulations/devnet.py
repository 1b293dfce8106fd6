"""A network of real peers on this machine: each a process of its own, in a folder of its own, on loopback.

`lay_out` makes the folders (identities, one genesis, settings) or takes them up as they are; `run_devnet` starts the
peers, waits until all are ready, and stops them all when it is cancelled. Each peer's standard input is a pipe that
this process holds: when it dies, however it dies, the peers see the pipe end and stop.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
import trio

from nsllm.clock import Clock
from nsllm.files import private_folder
from nsllm.governance.genesis import Genesis, load_genesis, save_genesis
from nsllm.governance.policy import Policy
from nsllm.ids import Address, PeerId
from nsllm.node.config import CONFIG_FILE, GENESIS_FILE, P2pConfig, PeerConfig, models_home
from nsllm.node.engine.threads import machine_threads
from nsllm.node.founding import found, founder
from nsllm.node.identity import Identity, locked, open_identity
from nsllm.node.settings import load_config, save_config
from nsllm.node.tcp_ports import EPHEMERAL_FROM, TRIES, choose, require_free
from nsllm.simulations.errors import DevnetError

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # where the installed stubs of trio keep it

HOST: Final = "127.0.0.1"
DEFAULT_BASE_PORT: Final = 8700
DEFAULT_PEERS: Final = 4
MAX_PEERS: Final = 64
NETWORK_NAME: Final = "devnet"
LOG_FILE: Final = "peer.log"
READY_S: Final = 300.0
"""Until all peers are ready: a cold start of four engines on two slow cores takes most of a minute."""
STOP_S: Final = 4.2
"""Peers end within 3.5 s of SIGTERM; whoever has not is killed, and all is over within 5 s."""
POLL_S: Final = 0.25
TAIL_LINES: Final = 12
PEER_COMMAND: Final = (sys.executable, "-m", "nsllm", "up")
P2P_OFFSET: Final = 1000
"""libp2p ports are looked for from here above the base port, clear of other devnets' API ports."""
P2P_FALLBACK: Final = 20000
"""Where to look if that runs into the range of outgoing connections."""


@dataclass(frozen=True, slots=True)
class DevnetPeer:
    """Peer `index` of the devnet."""

    index: int
    data_dir: Path
    url: str
    """API and page."""
    peer_id: PeerId
    address: Address
    multiaddr: str

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.data_dir / LOG_FILE


@dataclass(frozen=True, slots=True)
class Devnet:
    """A devnet that is laid out on disk."""

    data_dir: Path
    genesis: Genesis
    peers: tuple[DevnetPeer, ...]
    fresh: bool
    """True if this call founded it."""

    @property
    def genesis_file(self) -> Path:
        """The trust root that receipts are verified against."""
        return self.data_dir / GENESIS_FILE


@dataclass(frozen=True, slots=True)
class DevnetEvent:
    """Something that a person at the terminal should see."""

    kind: str
    """`starting`, `waiting`, `ready` or `exited`; in scenarios also `parted`, `slowed` and `healed`."""
    peer: int
    detail: str


Report = Callable[[DevnetEvent], None]


def lay_out(data_dir: Path, *, peers: int, base_port: int, policy: Callable[[], Policy], clock: Clock) -> Devnet:
    """Folders of a devnet, made if `data_dir` holds none. Blocking.

    Args:
        data_dir: gets `genesis.json` and one folder `peer-i` a peer.
        peers: how many, 1 to 64; an existing devnet must have as many.
        base_port: peer i serves its API and page on `base_port + i`.
        policy: the genesis policy; called only for a new devnet.
        clock: for the founding time.

    Raises:
        DevnetError: an existing devnet has another number of peers, or parts of it are missing.
        PortError: a port that a peer needs is in use; names it.
    """
    if not 1 <= peers <= MAX_PEERS:
        raise DevnetError(f"{peers} peers, expected 1 to {MAX_PEERS}")
    if not 1 <= base_port <= 65536 - peers:
        raise DevnetError(f"base port {base_port}: {peers} peers need as many ports from there, up to 65535")
    data_dir = private_folder(data_dir.expanduser().absolute())
    api_ports = range(base_port, base_port + peers)
    require_free(HOST, api_ports, "stop what runs there, or give another --base-port")
    kept = load_genesis(data_dir / GENESIS_FILE) if (data_dir / GENESIS_FILE).exists() else None
    if kept is not None and len(kept.members) != peers:
        raise DevnetError(
            f"the devnet in {data_dir} has {len(kept.members)} peers, asked for {peers}",
            hint=f"use --peers {len(kept.members)}, or another --data-dir",
        )
    folders = [data_dir / f"peer-{i}" for i in range(peers)]
    identities = [_identity(folder) for folder in folders]
    members = [founder(identity) for identity in identities]
    if kept is not None and {m.address for m in kept.members} != {m.address for m in members}:
        raise DevnetError(
            f"the keys in {data_dir} are not those of its genesis", hint="put the missing folder back, or start anew"
        )
    p2p_ports = _p2p_ports(folders, first=base_port + P2P_OFFSET, avoid=api_ports)
    addresses = [f"/ip4/{HOST}/tcp/{p2p_ports[i]}/p2p/{identities[i].peer_id}" for i in range(peers)]
    genesis = kept or found(NETWORK_NAME, members, policy(), clock.now_ms(), local=True)
    for i, folder in enumerate(folders):
        save_genesis(folder / GENESIS_FILE, genesis)
        _configure(folder, i, base_port + i, p2p_ports[i], tuple(a for j, a in enumerate(addresses) if j != i))
    # The devnet's own genesis comes last: without it, the next call founds anew with the same keys.
    if kept is None:
        save_genesis(data_dir / GENESIS_FILE, genesis)
    rows = tuple(
        DevnetPeer(
            index=i,
            data_dir=folders[i],
            url=f"http://{HOST}:{base_port + i}",
            peer_id=identities[i].peer_id,
            address=identities[i].address,
            multiaddr=addresses[i],
        )
        for i in range(peers)
    )
    return Devnet(data_dir=data_dir, genesis=genesis, peers=rows, fresh=kept is None)


def _identity(folder: Path) -> Identity:
    """The peer's identity; refused while a peer runs on the folder."""
    with locked(folder):
        return open_identity(folder)


def _p2p_ports(folders: list[Path], *, first: int, avoid: range) -> list[int]:
    """The ports that the peers' settings name already, and free ones for the rest."""
    kept: dict[int, int] = {}
    for i, folder in enumerate(folders):
        listen = load_config(folder).p2p.listen if (folder / CONFIG_FILE).exists() else ()
        port = listen[0].rpartition("/tcp/")[2] if listen else ""
        if port.isdecimal():
            kept[i] = int(port)
    require_free(HOST, kept.values(), "stop the peer that runs there, or start a devnet in another --data-dir")
    missing = [i for i in range(len(folders)) if i not in kept]
    first = first if first + TRIES < EPHEMERAL_FROM else P2P_FALLBACK
    fresh = choose(HOST, first, count=len(missing), avoid=[*kept.values(), *avoid])
    kept.update(zip(missing, fresh, strict=True))
    return [kept[i] for i in range(len(folders))]


def _configure(folder: Path, index: int, port: int, p2p_port: int, others: tuple[str, ...]) -> None:
    """Write the peer's settings; what its owner changed beside names, ports and addresses stays."""
    path = folder / CONFIG_FILE
    new = not path.exists()
    config = PeerConfig(data_dir=folder, home=models_home()) if new else load_config(folder)
    if new:
        engine = replace(config.engine, threads=machine_threads(peers=1 + len(others)))
        config = replace(config, name=f"peer-{index}", visibility="public", engine=engine)
    listen = (f"/ip4/{HOST}/tcp/{p2p_port}",)
    save_config(replace(config, api=replace(config.api, port=port), p2p=P2pConfig(listen=listen, bootstrap=others)))


async def run_devnet(
    devnet: Devnet,
    report: Report,
    *,
    ready_s: float = READY_S,
    command: Sequence[str] = PEER_COMMAND,
    task_status: TaskStatus[tuple[int, ...]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run all peers until cancelled, or until the last one has exited. Starts (with process ids) once all are ready.

    A peer that exits is reported with the end of its log and not started again: `nsllm up --data-dir` does that.

    Raises:
        DevnetError: a peer exited before all were ready, was not ready in time, or all have exited.
    """
    processes: list[trio.Process] = []
    try:
        for peer in devnet.peers:
            processes.append(await start_peer(peer, command))
            report(DevnetEvent("starting", peer.index, f"process {processes[-1].pid}"))
        ready = trio.Event()
        async with trio.open_nursery() as nursery:
            for peer, process in zip(devnet.peers, processes, strict=True):
                nursery.start_soon(_watch, peer, process, ready, report)
            await _all_ready(devnet, report, ready_s)
            ready.set()
            task_status.started(tuple(process.pid for process in processes))
        raise DevnetError("every peer has exited", hint=f"see {devnet.data_dir}/peer-*/{LOG_FILE}")
    finally:
        await stop_all(processes)


async def stop_all(processes: Sequence[trio.Process]) -> None:
    """SIGTERM to all, SIGKILL to whoever is left after `STOP_S` seconds. Not cancelled with its caller."""
    with trio.CancelScope(shield=True):
        for process in processes:
            process.terminate()
        with trio.move_on_after(STOP_S):
            for process in processes:
                await process.wait()
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def start_peer(peer: DevnetPeer, command: Sequence[str] = PEER_COMMAND) -> trio.Process:
    """The peer's process; its owner stops it."""
    with peer.log.open("ab") as log:
        peer.log.chmod(0o600)
        return await trio.lowlevel.open_process(
            [*command, "--data-dir", str(peer.data_dir), "--with-parent"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            # Ctrl-C at the terminal reaches this process alone, which then stops the peers.
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )


async def _watch(peer: DevnetPeer, process: trio.Process, ready: trio.Event, report: Report) -> None:
    status = await process.wait()
    tail = await trio.to_thread.run_sync(log_tail, peer.log)
    if not ready.is_set():
        raise DevnetError(
            f"peer {peer.index} exited {how_ended(status)} before it was ready; the end of {peer.log}:\n{tail}"
        )
    report(DevnetEvent("exited", peer.index, f"{how_ended(status)}; the end of {peer.log}:\n{tail}"))


def how_ended(status: int) -> str:
    """In words, such as `on SIGKILL`."""
    return f"on {signal.Signals(-status).name}" if status < 0 else f"with status {status}"


def log_tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log. Blocking."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"({error.strerror})"


async def _all_ready(devnet: Devnet, report: Report, ready_s: float) -> None:
    """Ask every peer's `/readyz` until all say 200."""
    waiting = {peer.index: "" for peer in devnet.peers}
    with trio.move_on_after(ready_s):
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            while waiting:
                for peer in devnet.peers:
                    if peer.index not in waiting:
                        continue
                    ok, detail = await readiness(client, peer.url)
                    if ok:
                        del waiting[peer.index]
                        report(DevnetEvent("ready", peer.index, peer.url))
                    elif detail and detail != waiting[peer.index]:
                        waiting[peer.index] = detail
                        report(DevnetEvent("waiting", peer.index, detail))
                if waiting:
                    await trio.sleep(POLL_S)
    if waiting:
        names = "; ".join(f"peer {index}: {detail or 'no answer'}" for index, detail in waiting.items())
        raise DevnetError(f"not ready after {ready_s:g} s: {names}", hint=f"see {devnet.data_dir}/peer-*/{LOG_FILE}")


async def readiness(client: httpx.AsyncClient, url: str) -> tuple[bool, str]:
    """Whether the peer at `url` is ready, and what it says of itself if it is not."""
    try:
        response = await client.get(f"{url}/readyz")
        return response.status_code == 200, str(response.json().get("detail", ""))
    except (httpx.HTTPError, ValueError):
        return False, ""
