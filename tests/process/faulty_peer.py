"""A peer that kills itself (SIGKILL) at a named moment of consensus, is started again, and so on.

    faulty_peer.py DATA_DIR MOMENT NTH LIVES TAP [engine]

Each life is a process of its own, forked from this one, which has done the imports. It dies when MOMENT has passed NTH
times; after LIVES deaths this process ends. Everything that the peer signs and sends in consensus is written to the
file TAP first, a line each: `signed` or `sent`, and the canonical message in hex. Votes need no model, so none runs
without the last argument.

With the moment `diverging` it has one life, in this process, until it is killed: it passes over the transactions of the
embedded chain, so that its state is not the one that the others certify. With `equivocating` likewise: after each vote
of its own it sends the same validator another one, for something else, signed as well. With `forging` it publishes
answers with a word that its model did not say. With `flooding` it sends others what junk.py holds, and with
`tapped` it does nothing beside writing down what it says.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio
from msgspec.structs import replace as changed

from nsllm.clock import SystemClock
from nsllm.consensus.guard import SignerGuard
from nsllm.consensus.message import decode_message, encode_message
from nsllm.consensus.vote import Vote
from nsllm.governance.chain import EmbeddedChain
from nsllm.ids import Digest, Height
from nsllm.node import parts
from nsllm.node.data_folder import settle
from nsllm.node.identity import locked
from nsllm.node.links import ConsensusMesh
from nsllm.node.orchestrator import Orchestrator
from nsllm.node.peer import Peer
from nsllm.node.presence import Presence
from nsllm.node.settings import load_config
from nsllm.node.world import real_world


def live(data_dir: Path, moment: str, nth: int, tap: Path, *, engine: bool) -> None:
    """One life; ends by SIGKILL."""
    passed = 0

    def checkpoint(name: str) -> None:
        nonlocal passed
        if name == moment:
            passed += 1
            if passed == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    if moment != "flooding":
        watch(tap)
    if moment == "equivocating":
        equivocate()
    if moment == "flooding":
        flood(tap)
    if moment == "forging":
        forge()
    if moment == "lying":
        lie()
    if moment == "diverging":
        EmbeddedChain.execute = lambda self, _transactions, time_ms: self._evm.execute((), time_ms)  # type: ignore[method-assign]
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s %(message)s")
    config = load_config(data_dir)
    with locked(config.data_dir):
        settled = settle(config, SystemClock(), lambda _progress: None)

        async def run() -> None:
            world = real_world(settled, checkpoint)
            await (await Peer.open(settled, world if engine else replace(world, services=()))).run()

        trio.run(run)


def watch(tap: Path) -> None:
    """Write down what is signed and sent, before it is."""
    handle = os.open(tap, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(what: str, message: bytes) -> None:
        os.write(handle, f"{what} {message.hex()}\n".encode())

    def noting(sign: Callable[..., Any]) -> Callable[..., Any]:
        def signed(*args: Any, **kwargs: Any) -> Any:
            body = sign(*args, **kwargs)
            note("signed", encode_message(body))
            return body

        return signed

    send = ConsensusMesh.send

    def sent(self: ConsensusMesh, to: Any, message: bytes) -> None:
        note("sent", message)
        send(self, to, message)

    SignerGuard.vote = noting(SignerGuard.vote)  # type: ignore[method-assign]
    SignerGuard.proposal = noting(SignerGuard.proposal)  # type: ignore[method-assign]
    ConsensusMesh.send = sent  # type: ignore[method-assign]


def flood(tap: Path) -> None:
    """Send what junk.py holds, and write down what has been sent."""
    spec = importlib.util.spec_from_file_location("junk", Path(__file__).with_name("junk.py"))
    assert spec is not None
    assert spec.loader is not None
    junk = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(junk)

    def note(line: str) -> None:
        with tap.open("a") as file:
            file.write(f"{line}\n")

    junk.Flood(note).install()


def equivocate() -> None:
    """Send a second vote of its own key after each."""
    guards: list[SignerGuard] = []
    begin, send = SignerGuard.__init__, ConsensusMesh.send

    def begun(self: SignerGuard, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        guards.append(self)

    def sent(self: ConsensusMesh, to: Any, message: bytes) -> None:
        send(self, to, message)
        body, guard = decode_message(message), guards[-1]
        if isinstance(body, Vote) and body.validator == guard.address:
            other = changed(body, value=Digest(bytes(32)) if body.value is None else None, valid_round=None)
            signature = guard._key.sign(other.digest(guard._network))
            send(self, to, encode_message(changed(other, signature=signature)))

    SignerGuard.__init__ = begun  # type: ignore[method-assign]
    ConsensusMesh.send = sent  # type: ignore[method-assign]


def forge() -> None:
    """Add a word to every record."""
    honest = Orchestrator._record

    def forged(self: Orchestrator, *args: Any) -> Any:
        record = honest(self, *args)
        return changed(record, text=f"{record.text} indeed")

    Orchestrator._record = forged  # type: ignore[method-assign]


def lie() -> None:
    """Claim much, and hand out what is not certified."""
    beat, offered, decided = Presence._beat, parts.serve_snapshot, parts.serve_sync

    class Lying:
        def __init__(self, honest: Any) -> None:
            self._honest = honest

        def __getattr__(self, name: str) -> Any:
            return getattr(self._honest, name)

        async def decided(self, start: Any, count: int) -> Any:
            found = await self._honest.decided(start, count)
            return [
                changed(one, certificate=changed(one.certificate, round=one.certificate.round + 1)) for one in found
            ]

        async def chunk(self, digest: Any, position: int) -> bytes | None:
            data = await self._honest.chunk(digest, position)
            return None if data is None else data[:-1] + bytes([data[-1] ^ 1])

    def claimed(self: Presence) -> tuple[Height, int]:
        height, sequence = beat(self)
        return Height(height + 1000), sequence

    Presence._beat = claimed  # type: ignore[method-assign]
    parts.serve_sync = lambda directory, store: decided(directory, Lying(store))  # type: ignore[assignment]
    parts.serve_snapshot = lambda directory, store: offered(directory, Lying(store))  # type: ignore[assignment]


LIVES_ON = ("diverging", "equivocating", "flooding", "forging", "lying", "tapped")
"""Moments of a peer that has one life."""


def main(data_dir: Path, moment: str, nth: int, lives: int, tap: Path, *, engine: bool) -> int:
    """Live and die; 0 if every death was the wanted one."""
    if moment in LIVES_ON:
        live(data_dir, moment, nth, tap, engine=engine)
    child = 0

    def stop(*_: object) -> None:
        if child:
            os.kill(child, signal.SIGKILL)
        os._exit(2)

    signal.signal(signal.SIGTERM, stop)
    for _ in range(lives):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            live(data_dir, moment, nth, tap, engine=engine)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            return 1
    return 0


if __name__ == "__main__":
    folder, name, number, deaths, file = sys.argv[1:6]
    sys.exit(main(Path(folder), name, int(number), int(deaths), Path(file), engine="engine" in sys.argv[6:]))
