"""Nonsense from clients and peers, damaged files, busy ports, a full disk: a clear error each, and the peer lives."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from itertools import count
from pathlib import Path

import httpx
import multiaddr
import psutil
import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.ping import PingService
from libp2p.peer.peerinfo import info_from_p2p_addr

from nsllm.errors import NsllmError
from nsllm.node.identity import open_identity
from nsllm.p2p.libp2p_network import Libp2pNetwork
from nsllm.p2p.protocols.fetch import FETCH
from nsllm.p2p.protocols.generate import GENERATE
from nsllm.p2p.protocols.heartbeat import HEARTBEAT
from nsllm.p2p.protocols.hello import HELLO
from nsllm.p2p.protocols.join import JOIN
from nsllm.p2p.protocols.mesh import MESH
from nsllm.p2p.protocols.push import PUSH
from nsllm.p2p.protocols.stock import STOCK
from nsllm.p2p.protocols.submit import SUBMIT
from nsllm.p2p.protocols.sync import SYNC

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]

CHAT = "/v1/chat/completions"
HELLO_BODY = json.dumps({"model": "default", "messages": [{"role": "user", "content": "hello"}]}).encode()
JSON = {"Content-Type": "application/json"}
PROTOCOLS = (SYNC, FETCH, STOCK, PUSH, GENERATE, MESH, SUBMIT, JOIN, HELLO, HEARTBEAT)
NONSENSE = {
    "garbage": b"\xff\xfe\xfd" * 700,
    "a frame of garbage": (600).to_bytes(4, "big") + b"\xc1" * 600,
    "a truncated frame": (600).to_bytes(4, "big") + b"\x81\xa4",
    "a frame that claims 1 GB": (1 << 30).to_bytes(4, "big") + b"\x81" * 4096,
    "a long frame of nested arrays": (4000).to_bytes(4, "big") + b"\x91" * 4000,
}
DATABASES = ("records", "ledger", "completions", "peerlog")
PAGE = 4096
GB = 1 << 30

numbers = count(1)


def certified(net, index: int) -> tuple[str, str]:
    """(question, completion id) of something new that was asked and certified."""
    question = f"How much is {next(numbers)} plus {os.getpid()}?"
    answer = net.ask(index, question)
    net.receipt(index, answer["id"])
    return question, answer["id"]


def body(**fields) -> bytes:
    return json.dumps({"model": "default", "messages": [{"role": "user", "content": "hello"}], **fields}).encode()


REFUSED = {
    "malformed JSON": (b'{"model": ', JSON, 400, "JSON"),
    "no JSON at all": (b"\x00\xff\xfe", JSON, 400, "JSON"),
    "an array": (b"[]", JSON, 400, "object"),
    "an unknown field": (body(banana=1), JSON, 400, "banana"),
    "an unknown model": (body(model="gpt-4o"), JSON, 404, "gpt-4o"),
    "10 MB": (body(user="x" * 10_000_000), JSON, 413, "larger than"),
    "a context overflow": (body(messages=[{"role": "user", "content": "word " * 2000}]), JSON, 400, "256"),
    "a temperature beyond its range": (body(temperature=9), JSON, 400, "temperature"),
    "a visibility that is none": (body(visibility="secret"), JSON, 400, "visibility"),
    "a form": (HELLO_BODY, {"Content-Type": "text/plain"}, 415, "application/json"),
    "a foreign origin": (HELLO_BODY, JSON | {"Origin": "https://evil.example"}, 403, "evil.example"),
    "a foreign host": (HELLO_BODY, JSON | {"Host": "evil.example"}, 403, "evil.example"),
    "a cross-site fetch": (HELLO_BODY, JSON | {"Sec-Fetch-Site": "cross-site"}, 403, "cross-site"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_request_gets_a_clear_error(tiny_net, case: str):
    content, headers, status, said = REFUSED[case]
    answer = httpx.post(tiny_net.url(0) + CHAT, content=content, headers=headers, timeout=60)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert said in error["message"]
    assert error["type"]
    assert error["code"]
    assert tiny_net.get(0, "/healthz").status_code == 200


def test_the_api_key_and_the_admin_key_are_asked_for(tiny_net):
    net, key = tiny_net, tiny_net.key
    url = net.url(3) + "/v1/models"
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {key}"}):
        refused = httpx.get(url, headers=headers)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(url, headers={"Authorization": f"Bearer {key}"}).status_code == 200
    # Without a configured key an Authorization header is ignored; the admin key is asked for all the same.
    assert httpx.get(net.url(0) + "/v1/models", headers={"Authorization": "Bearer wrong"}).status_code == 200
    for admin in ({}, {"X-NSLLM-Admin-Key": "nsllm-admin-wrong"}):
        refused = httpx.post(net.url(0) + "/admin/invite", json={}, headers=admin)
        assert refused.status_code == 401
        assert "admin key" in refused.json()["error"]["message"]


def test_garbage_on_the_libp2p_port(tiny_net):
    net = tiny_net
    for data in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * 100_000,
        b"",
        b"\x13/multistream/1.0.0\n" + b"\x00" * 999,
    ):
        with socket.create_connection(("127.0.0.1", net.p2p_port(0)), timeout=10) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
            except (ConnectionError, TimeoutError):
                pass
    assert net.get(0, "/readyz").status_code == 200
    certified(net, 0)


async def test_a_plain_libp2p_host_may_dial_identify_and_ping(tiny_net):
    host = new_host(key_pair=create_new_key_pair(bytes([9]) * 32))
    target = info_from_p2p_addr(multiaddr.Multiaddr(tiny_net.multiaddr(0)))
    with trio.fail_after(120):
        async with host.run(listen_addrs=[multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            await host.connect(target)
            (round_trip_ms,) = await PingService(host).ping(target.peer_id, 1)
            assert round_trip_ms >= 0  # in whole milliseconds: 0 on a quick machine
            while MESH not in host.get_peerstore().get_protocols(target.peer_id):
                await trio.sleep(0.1)


async def talk_nonsense(secret: bytes, address: str) -> int:
    """Every kind of nonsense on every protocol, till the peer ends each stream; how many it let us open."""
    opened = 0
    network = Libp2pNetwork(secret=secret, listen=["/ip4/127.0.0.1/tcp/0"], local=True)
    async with network.run():
        for protocol in PROTOCOLS:
            for name, data in NONSENSE.items():
                with trio.fail_after(60), suppress(NsllmError):
                    stream = await network.open(await network.connect(address), protocol)
                    opened += 1
                    await stream.send_all(data)
                    if name == "a truncated frame":
                        await stream.aclose()  # the rest never comes
                    while await stream.receive_some(65536):
                        pass
    return opened


async def test_nonsense_in_the_protocols(tiny_net):
    net = tiny_net
    before = psutil.Process(net.processes[0].pid).memory_info().rss
    # Heartbeats of strangers are ended before they are opened.
    assert await talk_nonsense(bytes([8]) * 32, net.multiaddr(0)) >= (len(PROTOCOLS) - 1) * len(NONSENSE)
    assert psutil.Process(net.processes[0].pid).memory_info().rss - before < GB // 4
    assert "handler_failed" not in net.log(0)
    certified(net, 0)


async def test_a_member_that_talks_nonsense(tiny_net):
    """With the key of a validator, whose frames are read further."""
    net = tiny_net
    net.stop(3)
    secret = open_identity(net.places[3].data_dir).libp2p_secret
    assert await talk_nonsense(secret, net.multiaddr(0)) >= (len(PROTOCOLS) - 1) * len(NONSENSE)
    assert "handler_failed" not in net.log(0)
    certified(net, 0)


def damage(path: Path) -> None:
    """Overwrite one page in the middle, and one near the end."""
    data = bytearray(path.read_bytes())
    pages = len(data) // PAGE
    assert pages >= 4, path
    for page in (pages // 2, pages - 1):
        data[page * PAGE : (page + 1) * PAGE] = b"\xa5" * PAGE
    path.write_bytes(data)


def test_damaged_databases_are_said_and_filled_again(tiny_net, nsllm):
    net = tiny_net
    asked = [certified(net, 2) for _ in range(8)]
    net.until_level()
    before = net.status(2)
    net.stop(2)
    folder = net.places[2].data_dir
    # What keeps a validator from signing twice is not begun anew: the peer refuses to start without it.
    guard = folder / "consensus" / "guard"
    kept = guard.read_bytes()
    guard.write_bytes(kept[:-20])
    refused = nsllm("up", "--data-dir", str(folder))
    assert refused.returncode == 1
    assert str(guard) in refused.stderr
    assert "damaged" in refused.stderr
    assert "Traceback" not in refused.stderr
    guard.write_bytes(kept)
    for name in DATABASES:
        damage(folder / f"{name}.sqlite")
    net.start(2)
    net.until_ready(2)
    notices = " ".join(net.status(2)["notices"])
    for what in ("record store", "ledger", "completions", "peer log"):
        assert f"{what} was damaged" in notices
    assert all(list(folder.glob(f"{name}.sqlite.damaged-*")) for name in DATABASES)
    net.until_level()
    after = net.status(2)
    assert after["consensus"]["height"] >= before["consensus"]["height"]
    net.until(lambda: net.status(2)["cache"]["records"] >= before["cache"]["records"], "the shelves are full again")
    kept_receipts = [net.get(2, f"/v1/receipts/{completion}").status_code == 200 for _, completion in asked]
    assert sum(kept_receipts) >= len(asked) // 2
    certified(net, 2)
    net.hit(2, asked[0][0])
    assert "offence" not in "".join(net.log(index) for index in range(4))
    net.stop(2)
    net.start(2)
    net.until_ready(2)
    assert "damaged" not in " ".join(net.status(2)["notices"])


def test_a_full_disk(tiny_net):
    net = tiny_net
    question, completion = certified(net, 1)
    receipt = net.receipt(1, completion, "anchored").text
    peer = psutil.Process(net.processes[1].pid)
    _, hard = peer.rlimit(psutil.RLIMIT_FSIZE)
    peer.rlimit(psutil.RLIMIT_FSIZE, (0, hard))  # from now on every write of the peer to any file fails
    try:
        refused = net.post(1, f"{question} And then?")
        assert refused.status_code == 503
        assert "free some space" in refused.json()["error"]["message"]
        certified(net, 0)
        net.until(lambda: "consensus halted" in " ".join(net.status(1)["notices"]), "the page says it")
        certified(net, 2)
        assert net.get(1, "/healthz").status_code == 200
        assert net.get(1, f"/v1/receipts/{completion}").text == receipt
    finally:
        peer.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
    net.until_level()
    certified(net, 1)
    assert net.processes[1].poll() is None
    assert net.get(1, f"/v1/receipts/{completion}").text == receipt
    assert "offence" not in "".join(net.log(index) for index in range(4))


def refused_start(nsllm, *arguments: str) -> str:
    """What `nsllm up` says when it does not start."""
    done = nsllm("up", *arguments)
    assert done.returncode in {1, 2}, done.stderr
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


def test_what_keeps_a_peer_from_starting_is_said(tiny_net, tiny_models, lay_out_tiny, nsllm, tmp_path):
    net = tiny_net
    spare = lay_out_tiny(tmp_path / "spare", tiny_models, peers=1)
    folder = str(spare.places[0].data_dir)
    port = net.url(0).rpartition(":")[2]
    said = refused_start(nsllm, "--data-dir", folder, "--port", port)
    assert port in said
    assert "--port" in said
    said = refused_start(nsllm, "--data-dir", folder, "--listen", f"/ip4/127.0.0.1/tcp/{net.p2p_port(0)}")
    assert str(net.p2p_port(0)) in said
    assert "in use" in said
    said = refused_start(nsllm, "--data-dir", folder, "--host", "0.0.0.0")
    assert "beyond loopback" in said
    assert "api.key" in said
    said = refused_start(nsllm, "--data-dir", str(net.places[0].data_dir))
    assert "another peer" in said
    said = refused_start(nsllm, "--data-dir", folder, "--genesis", str(net.genesis))
    assert "belongs to network" in said
    config = spare.places[0].data_dir / "config.toml"
    text = config.read_text()
    config.write_text(text.replace(str(tiny_models.text), str(tmp_path / "no-model")))
    said = refused_start(nsllm, "--data-dir", folder)
    assert "no-model" in said
    config.write_text(text + "\nbanana = 1\n")
    assert "banana" in refused_start(nsllm, "--data-dir", folder)
    done = nsllm("devnet", "--base-port", port, "--data-dir", str(tmp_path / "other"))
    assert done.returncode == 2
    assert port in done.stderr
    assert net.get(0, "/readyz").status_code == 200
