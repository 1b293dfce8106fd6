"""The root command: help, errors, exit statuses, and how little it imports."""

import json
import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from nsllm.cli.root import COMMANDS, SECTIONS, expected, root
from nsllm.errors import NsllmError, OwnFault

NAMES_THAT_STAY = [
    "up",
    "devnet",
    "ask",
    "receipt",
    "verify",
    "status",
    "peers",
    "init",
    "invite",
    "join",
    "doctor",
    "sim",
]


def test_the_names_that_scripts_rely_on() -> None:
    assert set(NAMES_THAT_STAY) <= set(COMMANDS)
    assert sorted(name for _, names in SECTIONS for name in names) == sorted(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_examples_and_json(name: str, nsllm: Callable) -> None:
    said = nsllm(name, "--help")
    assert said.status == 0
    assert "Examples:" in said.out
    command = root.get_command(click.Context(root), name)
    assert command is not None
    leaves = command.commands.values() if isinstance(command, click.Group) else [command]
    for leaf in leaves:
        assert "--json" in [option for parameter in leaf.params for option in parameter.opts], leaf.name
        assert "Examples:" in (leaf.epilog or "")


def test_wrong_usage_is_status_2_and_one_message(nsllm: Callable) -> None:
    for args in (["nonsense"], ["ask"], ["devnet", "--peers", "0"], ["ask", "x", "--api", "ftp://x"]):
        said = nsllm(*args)
        assert said.status == 2
        assert said.out == ""
        assert "Traceback" not in said.err


def test_an_expected_error_with_json_is_one_object(nsllm: Callable) -> None:
    said = nsllm("peers", "--api", "http://127.0.0.1:1", "--json")
    assert said.status == 1
    assert said.json()["error"]["code"] == "unreachable_api"
    assert "no peer answers at http://127.0.0.1:1" in said.err
    assert "nsllm up" in said.err


def test_debug_shows_the_trace(nsllm: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSLLM_DEBUG", "")  # put back afterwards
    assert "Traceback" in nsllm("--debug", "peers", "--api", "http://127.0.0.1:1").err


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (OwnFault("x"), OwnFault),
        (ExceptionGroup("a", [ExceptionGroup("b", [OwnFault("x")])]), OwnFault),
        (BaseExceptionGroup("a", [KeyboardInterrupt()]), KeyboardInterrupt),
        (ExceptionGroup("a", [OwnFault("x"), KeyError("y")]), None),
        (KeyError("y"), None),
    ],
)
def test_a_bug_is_never_taken_for_an_expected_error(error: BaseException, found: type | None) -> None:
    assert isinstance(expected(error), found or type(None))


def test_a_bug_keeps_its_trace(nsllm: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise KeyError("bug")

    monkeypatch.setattr("trio.run", broken)
    with pytest.raises(KeyError):
        nsllm("peers")


def test_interrupts_are_quiet(nsllm: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trio.run", interrupted)
    said = nsllm("peers")
    assert (said.status, said.out, said.err.strip()) == (130, "", "")


def imported(*args: str) -> set[str]:
    program = (
        "import sys\nfrom nsllm.cli.root import run\n"
        f"status = run({list(args)!r})\n"
        "import json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_help_loads_no_library_but_click() -> None:
    assert not imported("--help") & {"trio", "httpx", "torch", "libp2p", "rich", "msgspec", "numpy", "aiohttp"}


def test_verify_loads_no_network_model_or_evm() -> None:
    loaded = imported("verify", "/nowhere/r.json", "--genesis", "/nowhere/g.json")
    assert not loaded & {"trio", "httpx", "torch", "libp2p", "transformers", "eth", "aiohttp", "numpy", "rich"}


def test_completion_scripts(nsllm: Callable) -> None:
    for shell in ("bash", "zsh", "fish"):
        said = nsllm("completion", shell)
        assert said.status == 0
        assert "_NSLLM_COMPLETE" in said.out
        assert nsllm("completion", shell, "--json").json()["script"].rstrip("\n") == said.out.rstrip("\n")


def test_an_error_shows_message_and_hint(nsllm: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise NsllmError("it broke", hint="mend it")

    monkeypatch.setattr("trio.run", fails)
    said = nsllm("status")
    assert said.status == 1
    assert said.err == "error: it broke\n hint: mend it\n"
