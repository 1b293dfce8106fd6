"""A Byzantine peer as a process: the peer that `nsllm up` runs, twisted before it begins.

    python -m nsllm.simulations.twisted_peer --habit HABIT --data-dir DIR [--announce ADDRESS] [--bootstrap ADDRESS …]

It is a whole peer with keys, disk and model of its own; only what it says to other validators is not what it seems (see
`nsllm.simulations.twisted`). Its own guard and log stay honest: what it says besides is signed beside them.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import trio

from nsllm.clock import SystemClock
from nsllm.node.data_folder import Settled, settle
from nsllm.node.identity import locked
from nsllm.node.peer import Peer
from nsllm.node.settings import load_config
from nsllm.node.world import real_world
from nsllm.simulations.twisted import HABITS, twist


def main(arguments: list[str]) -> None:
    """Run until SIGTERM, or until standard input ends."""
    parser = argparse.ArgumentParser(prog="twisted_peer")
    parser.add_argument("--habit", choices=HABITS, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--announce", action="append", default=[])
    parser.add_argument("--bootstrap", action="append", default=[])
    parser.add_argument("--with-parent", action="store_true")
    given = parser.parse_args(arguments)
    if given.with_parent:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    overrides = {"p2p.announce": tuple(given.announce) or None, "p2p.bootstrap": tuple(given.bootstrap) or None}
    config = load_config(given.data_dir, overrides=overrides)
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with locked(config.data_dir):
        trio.run(_run, settle(config, SystemClock(), lambda _progress: None), given.habit)


async def _run(settled: Settled, habit: str) -> None:
    peer = await Peer.open(settled, real_world(settled))
    twist(peer, settled.identity.member, habit)
    logging.getLogger(__name__).warning("twisted habit=%s", habit.replace(" ", "-"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                nursery.cancel_scope.cancel()


def _end_with_parent() -> None:
    """The parent holds the other end of standard input, and the kernel closes it however the parent dies."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1:])
