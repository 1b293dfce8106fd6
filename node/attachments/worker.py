"""The attachment worker: the one process that decodes files of strangers. Started by the host, never by hand.

    python -m nsllm.node.attachments.worker --fd N --parent PID

It gives way to everything else on the machine, may use so much memory and write no file, and does one thing at a time.
What it cannot bear it dies of: the host starts another.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nsllm.node.attachments.tables import TableError, describe_table
from nsllm.node.attachments.wire import (
    Broken,
    Describe,
    Described,
    FromWorker,
    Prepare,
    Prepared,
    Refused,
    ToWorker,
    worker_reader,
)
from nsllm.node.engine.parent import die_with
from nsllm.node.engine.protocol import frame

if TYPE_CHECKING:
    from nsllm.node.attachments.describe import Onlooker

ADDRESS_SPACE_BYTES: Final = 4 << 30
"""With both models it takes 1.3 GiB of addresses and 0.6 GiB of memory; a picture of the largest size 0.6 GiB more."""
OPEN_FILES: Final = 64
NICENESS: Final = 5
READ_BYTES: Final = 1 << 16


def main(arguments: list[str]) -> int:
    """Answer until the peer goes."""
    parser = argparse.ArgumentParser(prog="nsllm attachment worker")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(arguments)
    connection = socket.socket(fileno=options.fd)
    die_with(options.parent, connection)
    confine()
    reader = worker_reader()
    desk = Desk()
    while data := connection.recv(READ_BYTES):
        for message in reader.feed(data):
            connection.sendall(frame(desk.answer(message)))
    return 0


def confine() -> None:
    """Bound what a file that is made to do harm can do."""
    os.nice(NICENESS)
    for what, limit in (
        (resource.RLIMIT_AS, ADDRESS_SPACE_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (bound, bound))


class Desk:
    """Does what is asked; keeps the models between questions."""

    def __init__(self) -> None:
        self._onlooker: Onlooker | None = None

    def answer(self, message: ToWorker) -> FromWorker:
        """One answer; a bug is told by its kind and place, for texts of errors may quote content."""
        try:
            match message:
                case Describe(format="CSV" | "JSON"):
                    return Described(*describe_table(message.data, message.format))
                case Describe():
                    return self._describe(message)
                case Prepare():
                    return self._prepare(message)
        except TableError as error:
            return Refused(str(error))
        except MemoryError:
            return Refused("the file takes more memory than it may")
        except Exception as error:  # noqa: BLE001 - decoders and models are other people's code
            place = traceback.extract_tb(error.__traceback__)[-1]
            return Broken(f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}")

    def _describe(self, message: Describe) -> FromWorker:
        from nsllm.node.attachments.describe import Onlooker
        from nsllm.node.attachments.images import ImageError
        from nsllm.node.attachments.pins import PinError

        if self._onlooker is None:
            self._onlooker = Onlooker()
        try:
            return Described(self._onlooker.describe(message.data, message.format), "ocr+labels")
        except ImageError as error:
            return Refused(str(error))
        except PinError as error:
            return Broken(str(error))

    def _prepare(self, message: Prepare) -> FromWorker:
        from nsllm.node.attachments.images import ImageError, open_image, prepared

        try:
            return Prepared(prepared(open_image(message.data, message.format), message.max_bytes))
        except ImageError as error:
            return Refused(str(error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
