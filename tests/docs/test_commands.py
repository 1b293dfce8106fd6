"""Shell blocks of the documents name commands, options, targets and files that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from nsllm.cli.root import COMMANDS, root

REPOSITORY = Path(__file__).resolve().parents[2]
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
VARIABLES = set(re.findall(r"^([A-Z_]+) \?=", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
OTHERS = {".", "curl", "docker", "kubectl", "pip", "python", "echo", "jq", "sqlite3", "systemctl", "sudo"}
"""Programs that the documents may use beside ours."""


def command_lines(text: str) -> list[str]:
    return [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>;&")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    return list(lexer)


def simple_commands(line: str) -> list[list[str]]:
    """The commands of a pipeline, without redirections."""
    commands: list[list[str]] = [[]]
    skip = False
    for word in words(line):
        if skip:
            skip = False
        elif set(word) <= set("|;&"):
            commands.append([])
        elif set(word) <= set("<>"):
            skip = True
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


def check_nsllm(arguments: list[str]) -> None:
    command: click.Command = root
    context = click.Context(root, info_name="nsllm")
    rest = list(arguments)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name!r}"
        command = found
    options = {name: option for option in command.params for name in option.opts if isinstance(option, click.Option)}
    flags = {name for name, option in options.items() if option.is_flag} | {"--help", "-h"}
    given = 0
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            assert name in options or name in flags, f"{command.name} has no option {name}"
            if name not in flags:
                value = value if equals else rest.pop(0)
                kind = options[name].type
                if isinstance(kind, click.Choice):
                    assert value in kind.choices, f"{name} {value}"
                elif isinstance(kind, click.types.IntParamType | click.types.FloatParamType):
                    kind.convert(value, options[name], context)
        else:
            given += 1
    wanted = [argument for argument in command.params if isinstance(argument, click.Argument)]
    several = any(argument.nargs == -1 for argument in wanted)
    assert several or given <= len(wanted), f"{command.name} takes {len(wanted)} arguments, not {given}"
    if "--help" not in arguments and command is not root and not isinstance(command, click.Group):
        assert given >= sum(argument.required for argument in wanted), f"{command.name} lacks an argument"


def check(command: list[str]) -> None:
    while re.match(r"^[A-Z_]+=", command[0]):
        command = command[1:]
    program, *arguments = command
    if program.rpartition("/")[2] == "nsllm":
        check_nsllm(arguments)
    elif program == "make":
        for argument in arguments:
            name, equals, _ = argument.partition("=")
            assert name in (VARIABLES if equals else TARGETS), f"the Makefile has no {name!r}"
    else:
        assert program in OTHERS, f"unknown program {program!r}"
        if program == "python" and arguments[0].endswith(".py"):
            assert (REPOSITORY / arguments[0]).is_file(), arguments[0]
        if program == "pip" and arguments[-1].startswith("examples/"):
            assert (REPOSITORY / arguments[-1] / "pyproject.toml").is_file()


def test_shell_blocks_name_what_exists(shell_block):
    for line in command_lines(shell_block.text):
        for command in simple_commands(line):
            try:
                check(command)
            except AssertionError as error:
                raise AssertionError(f"{shell_block}: {line}: {error}") from None


@pytest.mark.parametrize(
    "line",
    [
        "nsllm askk 'x'",
        "nsllm ask 'x' --recipt r.json",
        "nsllm ask 'x' 'y'",
        "nsllm verify --genesis g.json",
        "nsllm verify r.json --genesis g.json --require anchord",
        "nsllm devnet --peers four",
        "nsllm model fetsch",
        "make tset",
        "make up ONC=1",
        "frobnicate",
    ],
)
def test_mistakes_are_noticed(line):
    with pytest.raises((AssertionError, click.BadParameter)):
        check(simple_commands(line)[0])


def test_inline_commands_exist(document):
    """`nsllm word` in running text names a command, too."""
    named = re.findall(r"`nsllm ([a-z]+)[^`]*`", document.read_text())
    assert [name for name in named if name not in COMMANDS] == []


def test_examples_of_the_help_texts_exist():
    context = click.Context(root, info_name="nsllm")
    for name in COMMANDS:
        command = root.get_command(context, name)
        assert command is not None
        lines = (command.epilog or "").replace("\b", "").replace("\\\n", " ").splitlines()
        assert "Examples:" in [line.strip() for line in lines], name
        for line in lines:
            for parts in simple_commands(line):
                if parts[0] in {"nsllm", "make"}:
                    check(parts)
