"""The model worker: the one process that holds torch. Started by the supervisor, never by hand.

    python -m nsllm.node.engine.worker --fd N --parent PID --text DIR --encoder DIR --threads N [--library FILE]

It ends when the peer does (the kernel's parent-death signal on Linux, and the socket's end everywhere), at once on
SIGTERM, and leaves SIGINT to the peer. A bug ends it with a trace; the supervisor starts another.
"""

from __future__ import annotations

import argparse
import gc
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from nsllm.node.engine.devices import Devices
from nsllm.node.engine.models import read_config, sees
from nsllm.node.engine.parent import die_with
from nsllm.node.engine.protocol import FromWorker, Ready, frame, worker_reader

if TYPE_CHECKING:
    from nsllm.node.engine.backend import Backend
    from nsllm.node.engine.general import Model

READ_BYTES: Final = 1 << 16


def main(arguments: list[str]) -> int:
    """Load both models, then serve until the peer goes."""
    parser = argparse.ArgumentParser(prog="nsllm model worker")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--library", type=Path, help="compiled kernels; without them, or --device: general path")
    parser.add_argument("--device", help="of the batched path; without it, another path")
    parser.add_argument("--dtype", default="float32", help="what the fast or batched path computes in")
    parser.add_argument("--cache-mb", type=int, default=512)
    parser.add_argument("--packed", type=Path, help="FOLDER/MODEL of the fast path's packed weights")
    parser.add_argument("--parallel", default="none", help="how the general path spreads a model over --devices")
    parser.add_argument("--devices", default="", help="such as cuda:0,cuda:1")
    options = parser.parse_args(arguments)
    connection = socket.socket(fileno=options.fd)
    die_with(options.parent, connection)
    serve(connection, options)
    return 0


def serve(connection: socket.socket, options: argparse.Namespace) -> None:
    """Load, say `Ready`, work until the connection ends."""
    started = time.perf_counter()
    import torch

    # Kernels have threads of their own; torch's, which wait hotly for each other, then have the encoder alone.
    fast = options.device is None and options.library is not None
    torch.set_num_threads(1 if fast else options.threads)
    torch.set_num_interop_threads(1)
    from nsllm.node.engine.scheduler import Scheduler

    def send(message: FromWorker) -> None:
        connection.sendall(frame(message))

    backend = load_backend(options)
    gc.collect()
    gc.freeze()  # the libraries stay for ever: later collections need not look at them
    scheduler = Scheduler(backend, send)
    reader = worker_reader()
    send(Ready(load_s=time.perf_counter() - started, rss_bytes=psutil.Process().memory_info().rss))
    while True:
        try:
            # Wait only if there is nothing to do.
            data = connection.recv(READ_BYTES, socket.MSG_DONTWAIT if scheduler.busy else 0)
            if not data:
                return
            for message in reader.feed(data):
                scheduler.handle(message)
        except BlockingIOError:
            pass
        scheduler.step()
        scheduler.side()


def load_backend(options: argparse.Namespace) -> Backend:
    """The backend that the peer chose. Imports of the others cost seconds, so they are not imported."""
    if options.device is not None:
        from nsllm.node.engine.batched.backend import BatchedBackend

        return BatchedBackend(
            options.text,
            options.encoder,
            options.dtype,
            options.device,
            library=options.library,
            cache_mb=options.cache_mb,
        )
    if options.library is None:
        from nsllm.node.engine.general import CausalModel, TransformersBackend

        devices = Devices(options.parallel, tuple(name for name in options.devices.split(",") if name))
        if sees(read_config(options.text)):
            from nsllm.node.engine.vision import VisionBackend, VisionModel

            return VisionBackend(options.text, options.encoder, VisionModel(options.text, devices))
        if devices.parallel == "tensor":
            from nsllm.node.engine.ranks.leader import lead

            model: Model = lead(options.text, devices, options.threads)
        else:
            model = CausalModel(options.text, devices)
        return TransformersBackend(options.text, options.encoder, model)
    from nsllm.node.engine.fast.backend import FastBackend
    from nsllm.node.engine.fast.packed import Place

    return FastBackend(
        options.text,
        options.encoder,
        options.library,
        options.dtype,
        threads=options.threads,
        cache_mb=options.cache_mb,
        packed=None if options.packed is None else Place(options.packed.parent, options.packed.name),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
