"""Networks of real peers on loopback: real processes, libp2p and HTTP; tiny random models, or the default ones.

Two networks are shared by the whole run, because starting four peers takes most of a minute on two cores:
`default_devnet` is `nsllm devnet` as a user starts it; `tiny_net` are four `nsllm up` that tests may kill, damage and
start again, and that every test finds whole.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import psutil
import pytest
from msgspec.structs import replace as changed

from nsllm.clock import SystemClock
from nsllm.governance.defaults import default_policy
from nsllm.governance.policy import Policy
from nsllm.ids import PPM_ONE, Ppm
from nsllm.node.config import EngineConfig, models_home
from nsllm.node.engine.models import ModelPaths, ensure_default_models, model_digest
from nsllm.node.engine.tiny import build_tiny_models
from nsllm.node.settings import load_config, save_config
from nsllm.node.tcp_ports import any_free
from nsllm.p2p.tcp_port import is_free
from nsllm.simulations.devnet import lay_out

FAULTY = Path(__file__).with_name("faulty_peer.py")
PATIENCE_S = 240.0
"""Deadlines here only end broken runs; the machine may be busy with much else."""
LEVELS = ("pending", "certified", "logged", "anchored")


def _until(holds: Callable[[], bool], what: str, *, within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if holds():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not within {within_s} s: {what}")


@dataclass(frozen=True)
class Place:
    """Where a peer lives and answers."""

    index: int
    data_dir: Path
    url: str
    address: str
    multiaddr: str

    @property
    def log(self) -> Path:
        return self.data_dir / "peer.log"


@dataclass
class Net:
    """A network of peers, and those of its processes that the test started one by one."""

    places: tuple[Place, ...]
    genesis: Path
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    key: str = "the key of a test network"
    """What peers with a configured API key ask for; sent to all of them."""

    def url(self, index: int) -> str:
        return self.places[index].url

    def multiaddr(self, index: int) -> str:
        return self.places[index].multiaddr

    def p2p_port(self, index: int) -> int:
        return int(self.multiaddr(index).split("/")[4])

    # processes

    def start(self, index: int, *, faulty: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """`nsllm up` on the peer's folder, or a peer that is `faulty` (see faulty_peer.py)."""
        place = self.places[index]
        command = [sys.executable, "-m", "nsllm", "up", "--data-dir", str(place.data_dir), "--with-parent"]
        if faulty:
            command = [sys.executable, str(FAULTY), str(place.data_dir), *faulty]
        with place.log.open("ab") as output:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
        self.processes[index] = process
        return process

    def kill(self, index: int) -> None:
        """SIGKILL, as a power cut would."""
        process = self.processes.pop(index)
        process.kill()
        process.wait()

    def stop(self, *indices: int) -> None:
        """SIGTERM, and the peers must be gone in time."""
        stopped = {index: self.processes.pop(index) for index in indices or tuple(self.processes)}
        for process in stopped.values():
            process.send_signal(signal.SIGTERM)
        for index, process in stopped.items():
            try:
                assert process.wait(60) == 0, f"peer {index} ended with {process.returncode}\n{self.tail(index)}"
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise AssertionError(f"peer {index} did not stop on SIGTERM\n{self.tail(index)}") from None

    def all_up(self) -> None:
        """Start whoever is down, and wait until everybody is ready and at one height."""
        for place in self.places:
            process = self.processes.get(place.index)
            if process is None or process.poll() is not None:
                self.start(place.index)
        self.until_ready(*range(len(self.places)))
        self.until_level()

    # waiting

    def until(self, holds: Callable[[], bool], what: str, *, within_s: float = PATIENCE_S) -> None:
        """Wait for something that other processes bring about."""
        try:
            _until(holds, what, within_s=within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tails()}") from None

    def until_ready(self, *indices: int) -> None:
        for index in indices:
            self.until(lambda i=index: self._ready(i), f"peer {index} ready")

    def _ready(self, index: int) -> bool:
        process = self.processes.get(index)
        if process is not None and process.poll() is not None:
            raise AssertionError(f"peer {index} ended with {process.returncode}")
        return self.get(index, "/readyz").status_code == 200

    def until_level(self, *indices: int) -> None:
        """Wait until these peers (or all) have the same blocks and the same log, and nothing more to anchor."""
        wanted = indices or tuple(place.index for place in self.places)

        def level() -> bool:
            views = [self.status(index) for index in wanted]
            heads = {(v["consensus"]["height"], v["logs"]["network_log_root"]) for v in views}
            return len(heads) == 1 and all(self.at_rest(view) for view in views)

        self.until(level, f"peers {wanted} at one height and root, anchored")

    @staticmethod
    def at_rest(view: dict) -> bool:
        """Nothing is pending, and the last anchor is certified."""
        logs = view["logs"]
        anchored = logs["anchored_size"] == logs["network_log_size"]
        proved = all(anchor["certified"] for anchor in view["anchors"][:1])
        return view["consensus"]["pending"] == 0 and anchored and proved

    # asking

    def get(self, index: int, path: str, **params) -> httpx.Response:
        return httpx.get(self.url(index) + path, params=params, headers=self.headers, timeout=90)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def status(self, index: int) -> dict:
        return self.get(index, "/status.json").json()

    def height(self, index: int) -> int:
        return self.status(index)["consensus"]["height"]

    def post(self, index: int, text: str, **fields) -> httpx.Response:
        body = {"model": "default", "messages": [{"role": "user", "content": text}], "max_tokens": 12, **fields}
        return httpx.post(f"{self.url(index)}/v1/chat/completions", json=body, headers=self.headers, timeout=180)

    def ask(self, index: int, text: str, **fields) -> dict:
        """The completion, with its headers."""
        answer = self.post(index, text, **fields)
        assert answer.status_code == 200, answer.text
        return answer.json() | {"headers": dict(answer.headers)}

    def hit(self, index: int, text: str, **fields) -> dict:
        """The completion, once it comes from the cache: a look-up that a busy machine holds up is not waited for."""
        found: list[dict] = []

        def there() -> bool:
            found[:] = [self.ask(index, text, **fields)]
            return found[0]["headers"]["x-nsllm-source"] == "cache"

        self.until(there, f"peer {index} answers from the cache")
        return found[0]

    def receipt(self, index: int, completion_id: str, wait: str = "certified") -> httpx.Response:
        """The receipt once it has reached a level."""
        found: list[httpx.Response] = []

        def there() -> bool:
            answer = self.get(index, f"/v1/receipts/{completion_id}", wait=wait, timeout_s=20)
            assert answer.status_code in {200, 202}, answer.text
            if LEVELS.index(answer.headers["x-nsllm-receipt"]) >= LEVELS.index(wait):
                found.append(answer)
            return bool(found)

        self.until(there, f"{completion_id} {wait}")
        return found[0]

    # looking

    def log(self, index: int) -> str:
        path = self.places[index].log
        return path.read_text(errors="replace") if path.exists() else ""

    def tail(self, index: int, lines: int = 25) -> str:
        return f"--- peer {index}\n" + "\n".join(self.log(index).splitlines()[-lines:])

    def tails(self) -> str:
        return "\n".join(self.tail(place.index) for place in self.places)

    def worker(self, index: int) -> psutil.Process:
        """The peer's model worker."""
        peer = psutil.Process(self.processes[index].pid)
        (found,) = (p for p in peer.children() if "nsllm.node.engine.worker" in p.cmdline())
        return found


@dataclass
class DevnetProcess(Net):
    """A whole devnet behind one process."""

    process: subprocess.Popen[bytes] | None = None
    pids: tuple[int, ...] = ()

    def family(self) -> list[psutil.Process]:
        """The devnet, its peers and their workers."""
        assert self.process is not None
        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    @staticmethod
    def gone(processes: list[psutil.Process], within_s: float = 10.0) -> list[psutil.Process]:
        """Who of them is still there after that time."""
        _, alive = psutil.wait_procs(processes, timeout=within_s)
        return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def _free_base(first: int, count: int) -> int:
    """The first of `count` free ports in a row, less than 1000 above `first`: libp2p's ports stand 1000 above. Another
    run on this machine begins elsewhere.
    """
    start = first + os.getpid() % 50 * 16
    return next(
        base
        for base in range(start, first + 1000, 16)
        if all(is_free("127.0.0.1", port) for port in range(base, base + count))
    )


def _lenient(paths: ModelPaths) -> Policy:
    """A policy that random models can pass, with what they said."""
    policy = default_policy(model_digest(paths.text), model_digest(paths.encoder))
    return changed(policy, toxicity_max_ppm=PPM_ONE, coherence_min_ppm=Ppm(0), reuse_min_ppm=Ppm(1))


def _lay_out_tiny(folder: Path, models: ModelPaths, *, peers: int, first_port: int = 12000) -> Net:
    """Folders of a network of tiny models; nothing runs yet."""
    base = _free_base(first_port, peers)
    devnet = lay_out(folder, peers=peers, base_port=base, policy=lambda: _lenient(models), clock=SystemClock())
    for peer in devnet.peers:
        config = load_config(peer.data_dir)
        save_config(replace(config, engine=EngineConfig(text_model=models.text, encoder_model=models.encoder)))
    places = tuple(Place(p.index, p.data_dir, p.url, "0x" + p.address.hex(), p.multiaddr) for p in devnet.peers)
    return Net(places, devnet.genesis_file)


def _start_devnet(folder: Path, *, peers: int, base_port: int) -> DevnetProcess:
    """`nsllm devnet --json`, once all of its peers are ready."""
    command = [sys.executable, "-m", "nsllm", "devnet", "--peers", str(peers), "--json"]
    command += ["--base-port", str(base_port), "--data-dir", str(folder)]
    log = folder.with_name(f"{folder.name}.log")
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, log.read_text()
    told = json.loads(line)
    assert "peers" in told, f"{line!r}\n{log.read_text()}"
    places = tuple(
        Place(p["index"], Path(p["data_dir"]), p["url"], p["address"], p["multiaddr"]) for p in told["peers"]
    )
    pids = tuple(p["pid"] for p in told["peers"])
    return DevnetProcess(places, Path(told["genesis"]), process=process, pids=pids)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> ModelPaths:
    return build_tiny_models(tmp_path_factory.mktemp("tiny-models"))


@pytest.fixture(scope="session")
def _tiny_net(tmp_path_factory: pytest.TempPathFactory, tiny_models: ModelPaths) -> Iterator[Net]:
    net = _lay_out_tiny(tmp_path_factory.mktemp("tiny") / "net", tiny_models, peers=4, first_port=10000)
    last = load_config(net.places[3].data_dir)
    save_config(replace(last, api=replace(last.api, key=net.key)))
    yield net
    net.stop()


@pytest.fixture
def tiny_net(_tiny_net: Net) -> Net:
    """Four peers that a test may kill, damage and start again; all are up and level when it begins. The last one asks
    for an API key.
    """
    _tiny_net.all_up()
    return _tiny_net


@pytest.fixture(scope="session")
def nsllm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command, run to its end."""

    def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nsllm", *arguments]
        options = {"capture_output": True, "text": True, "timeout": PATIENCE_S, **options}
        return subprocess.run(command, check=False, **options)

    return run


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], bool], str], None]:
    """Wait for something that other processes bring about."""
    return _until


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A port that nobody listens on."""
    return lambda: any_free("127.0.0.1")


@pytest.fixture(scope="session")
def lay_out_tiny() -> Callable[..., Net]:
    """Folders of a network of tiny models; the test runs it."""
    return _lay_out_tiny


@pytest.fixture
def start_devnet() -> Iterator[Callable[[Net], DevnetProcess]]:
    """`nsllm devnet` on a network that is laid out; killed with the test."""
    started: list[DevnetProcess] = []

    def start(net: Net) -> DevnetProcess:
        port = int(net.url(0).rpartition(":")[2])
        started.append(_start_devnet(net.genesis.parent, peers=len(net.places), base_port=port))
        return started[-1]

    yield start
    for devnet in started:
        assert devnet.process is not None
        devnet.process.kill()
        devnet.process.wait()


@pytest.fixture(scope="session")
def default_devnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevnetProcess]:
    """`nsllm devnet --peers 4` as a user starts it, with the default models; at the end SIGTERM stops all of it."""
    ensure_default_models(models_home(), lambda _progress: None)
    folder = tmp_path_factory.mktemp("devnet")
    net = _start_devnet(folder / "net", peers=4, base_port=_free_base(14000, 4))
    assert net.process is not None
    yield net
    family = net.family()
    net.process.send_signal(signal.SIGTERM)
    # Status 0 says that it kept its own bound of 4.8 s; later than that, its deadline would have ended it with 1.
    assert net.process.wait(PATIENCE_S) == 0, (folder / "net.log").read_text()
    left = net.gone(family)
    assert not left, f"still running: {left}"
