"""How ranks find each other: torch's process group, over loopback only.

torchrun would do it as well, but with a process of its own between peer and worker, which restarts what the supervisor
restarts already, keeps the worker's death from the peer, and listens on every interface. So the leader starts the
others itself, with the environment that torchrun sets.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Final

import torch
from torch.distributed import TCPStore, init_process_group  # type: ignore[attr-defined]  # re-exported in fact

from nsllm.node.engine.devices import Devices

LOOPBACK: Final = "127.0.0.1"
MEET_LIMIT: Final = timedelta(minutes=10)
"""For one rank to wait for another, loading included; the supervisor loses patience long before."""


def environment(devices: Devices, rank: int, port: int) -> dict[str, str]:
    """What torchrun sets and libraries read, and the interface that ranks talk over."""
    ranks = str(devices.ranks)
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
    }


def meet(devices: Devices, rank: int, listener: socket.socket | None = None) -> None:
    """Join the process group of this environment; blocks until all have.

    Args:
        devices: of the model; GPUs talk through NCCL, processors through gloo.
        rank: ours.
        listener: the leader's, bound to `MASTER_PORT` on loopback; torch would bind it on every interface.
    """
    store = TCPStore(
        LOOPBACK,
        int(os.environ["MASTER_PORT"]),
        devices.ranks,
        is_master=listener is not None,
        timeout=MEET_LIMIT,
        master_listen_fd=None if listener is None else listener.detach(),
    )
    device = torch.device(devices.local(rank))
    if devices.cuda:
        torch.cuda.set_device(device)
    init_process_group(
        "nccl" if devices.cuda else "gloo",
        store=store,
        rank=rank,
        world_size=devices.ranks,
        timeout=MEET_LIMIT,
        device_id=device if devices.cuda else None,
    )
