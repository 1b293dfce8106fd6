"""Commands and their options."""

from __future__ import annotations

from tables.pieces import joined, table


def commands() -> str:
    """Every command of `nsllm` with its options."""
    import click

    from nsllm.cli.root import root

    parts: list[str] = []

    def describe(command: click.Command, path: str) -> None:
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                describe(found, f"{path} {name}")
            return
        arguments = " ".join(p.human_readable_name for p in command.params if isinstance(p, click.Argument))
        about = joined((command.help or command.short_help or "").split("\f")[0])
        parts.append(f"### `{path}{' ' + arguments if arguments else ''}`\n\n{about}")
        rows = [_option(option) for option in command.params if isinstance(option, click.Option)]
        parts.append(table(("option", "meaning"), rows))

    describe(root, "nsllm")
    return "\n\n".join(parts)


def _option(option: object) -> tuple[str, str]:
    import click

    assert isinstance(option, click.Option)
    context = click.Context(click.Command("nsllm"), max_content_width=1000, terminal_width=1000)
    spelled, meaning = option.get_help_record(context) or ("", "")
    return f"`{spelled}`", " ".join(meaning.split())
