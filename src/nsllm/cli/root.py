"""The root command: finds commands by name, imports them when they are asked for, and turns errors into messages."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final

import click

from nsllm import __version__
from nsllm.cli.terminal import emit, fail
from nsllm.errors import NsllmError, UsageError

INTERRUPTED: Final = 130
"""128 + SIGINT, as shells have it."""

Expected = NsllmError | KeyboardInterrupt | click.ClickException | click.Abort | click.exceptions.Exit

COMMANDS: Final = {
    "up": "Run a peer; without a genesis, a network of its own.",
    "devnet": "Run a whole network of real peers on this machine.",
    "demo": "Run a devnet and show a question's whole road.",
    "ask": "Ask a question; the answer streams.",
    "ingest": "Share documents that answers may cite.",
    "documents": "Documents that the peer shares: list, remove.",
    "cache": "Records of the peer's store: export, import.",
    "receipt": "Fetch the receipt of an answer.",
    "verify": "Check a receipt offline.",
    "status": "Show how a peer is doing.",
    "peers": "List the peers that a peer knows.",
    "init": "Make a data folder: keys, settings, genesis.",
    "invite": "Print a one-time invite for another machine.",
    "join": "Join the network of an invite.",
    "group": "Circles that share answers under a key of their own.",
    "governance": "Motions of the validators: list, propose, approve.",
    "doctor": "Check this machine and say what to do.",
    "sim": "Run a simulated network from a seed.",
    "model": "Fetch, list, add, convert and describe models.",
    "completion": "Print a shell's completion script.",
}
SECTIONS: Final = (
    ("Run", ("up", "devnet", "demo")),
    ("Ask and verify", ("ask", "receipt", "verify")),
    ("Documents and records", ("ingest", "documents", "cache")),
    ("Look", ("status", "peers", "doctor")),
    ("Set up", ("init", "invite", "join", "group", "governance", "model", "completion")),
    ("Study", ("sim",)),
)


class Root(click.Group):
    """Commands by name, each in a module of its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All names, as `--help` and completion show them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"nsllm.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The overview, without importing any command."""
        for title, names in SECTIONS:
            with formatter.section(title):
                formatter.write_dl([(name, COMMANDS[name]) for name in names])


@click.command(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `nsllm devnet`, then `nsllm ask 'Why is the sky blue?'`. Every command's --help has examples.",
)
@click.version_option(__version__, prog_name="nsllm")
@click.option("--debug", is_flag=True, envvar="NSLLM_DEBUG", help="Show the trace of an error.")
def root(debug: bool) -> None:
    """NS-LLM: ask language models in a network of peers; answers come with a score that peers agreed on and a receipt
    that anybody can check offline.
    """  # noqa: D205 - one sentence
    if debug:
        os.environ["NSLLM_DEBUG"] = "1"


def main() -> None:
    """Run the command line of this process and exit with its status."""
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command line; the exit status. Expected errors are one message, never a trace (but with `--debug`)."""
    try:
        status = root.main(args=list(args), prog_name="nsllm", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader left (`nsllm peers | head -1`); keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BaseException as error:
        known = expected(error)
        if known is None:
            raise
        return _told(known, error, as_json="--json" in args)
    return status if isinstance(status, int) else 0


def _told(known: Expected, error: BaseException, *, as_json: bool) -> int:
    """Say what went wrong; the exit status."""
    match known:
        case click.exceptions.Exit():
            return known.exit_code
        case KeyboardInterrupt() | click.Abort():
            return INTERRUPTED
        case click.ClickException():
            if as_json:
                emit({"error": {"code": "usage_error", "message": known.format_message(), "hint": ""}})
            known.show()
            return known.exit_code
        case NsllmError():
            if os.environ.get("NSLLM_DEBUG"):
                traceback.print_exception(error)
            if as_json:
                emit({"error": {"code": known.code, "message": known.message, "hint": known.hint}})
            fail(known.message, known.hint)
            return 2 if isinstance(known, UsageError) else 1


def expected(error: BaseException) -> Expected | None:
    """The expected error inside `error`, which may be a nursery's group; None if there is a bug among them."""
    if isinstance(error, Expected):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = [expected(inner) for inner in error.exceptions]
        return None if None in found else found[0]
    return None
