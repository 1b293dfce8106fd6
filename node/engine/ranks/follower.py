"""A rank that follows: its share of a text model, and the passes that the leader tells. Started by the leader.

    python -m nsllm.node.engine.ranks.follower --fd N --parent PID --rank N --devices cpu,cpu --text DIR --threads N

It ends when the leader does. It sees token ids only: no text, no sampling parameters, no results.
"""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nsllm.node.engine.backend import Read
from nsllm.node.engine.devices import Devices
from nsllm.node.engine.parent import die_with
from nsllm.node.engine.ranks.passes import Pass, pass_reader

if TYPE_CHECKING:
    from nsllm.node.engine.general import CausalModel, GeneralCache

READ_BYTES: Final = 1 << 16


def main(arguments: list[str]) -> int:
    """Load this rank's share of the model, then follow until the leader goes."""
    parser = argparse.ArgumentParser(prog="nsllm model worker, a following rank")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--devices", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args(arguments)
    connection = socket.socket(fileno=options.fd)
    die_with(options.parent, connection)
    import torch
    from torch.distributed import barrier

    torch.set_num_threads(options.threads)
    torch.set_num_interop_threads(1)
    from nsllm.node.engine.general import CausalModel
    from nsllm.node.engine.ranks.meeting import meet

    devices = Devices("tensor", tuple(options.devices.split(",")))
    meet(devices, options.rank)
    model = CausalModel(options.text, devices)
    barrier()
    follow(connection, model)
    return 0


def follow(connection: socket.socket, model: CausalModel) -> None:
    """Make the passes that come, in order, until the connection ends."""
    reader = pass_reader()
    sequences: dict[int, GeneralCache] = {}
    while data := connection.recv(READ_BYTES):
        for told in reader.feed(data):
            take(told, model, sequences)


def take(told: Pass, model: CausalModel, sequences: dict[int, GeneralCache]) -> None:
    """One pass."""
    for number in told.closed:
        sequences.pop(number, None)
    for part in told.parts:
        if part.sequence not in sequences:
            sequences[part.sequence] = model.open()
    model.forward([Read(sequences[part.sequence], part.token_ids, part.keep) for part in told.parts])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
