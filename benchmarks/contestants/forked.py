"""Many processes of one module out of one that has imported it: each a process of its own, with pipes of its own.

    python -m benchmarks.contestants.forked MODULE IN OUT LOG [IN OUT LOG …]

The module's `main` finds its pipes as standard input and output. Ends when all of them have.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import sys

FIRST_FREE = 3
"""Above standard input, output and errors."""


def main() -> None:
    """Fork, and wait for all."""
    module = importlib.import_module(sys.argv[1])
    pipes = [sys.argv[start : start + 3] for start in range(2, len(sys.argv), 3)]
    for inward, outward, log in pipes:
        if os.fork() == 0:
            os.dup2(int(inward), 0)
            os.dup2(int(outward), 1)
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            os.closerange(FIRST_FREE, os.sysconf("SC_OPEN_MAX"))  # the others' pipes, too
            random.seed()
            module.main()
            os._exit(0)
    for inward, outward, _ in pipes:
        os.close(int(inward))
        os.close(int(outward))
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":
    main()
