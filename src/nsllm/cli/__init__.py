"""The door: the `nsllm` command, one file a command.

May import: every room, lazily: `nsllm --help` loads none of them. What is asked for goes to standard output (with
`--json` one line, one object), everything else to standard error. Exit status: 0 done, 1 failed, 2 wrong usage.
"""

from nsllm.cli.root import main

__all__ = ["main"]
