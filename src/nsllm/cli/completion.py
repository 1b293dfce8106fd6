"""`nsllm completion`: completion scripts for shells."""

from __future__ import annotations

import click

from nsllm.cli.terminal import emit, examples, json_option


@click.command(
    short_help="Print a shell's completion script.",
    epilog=examples(
        "nsllm completion bash >> ~/.bashrc",
        "nsllm completion zsh >> ~/.zshrc",
        "nsllm completion fish > ~/.config/fish/completions/nsllm.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@json_option
def completion(*, shell: str, as_json: bool) -> None:
    """Print the completion script for SHELL."""
    from click.shell_completion import BashComplete, get_completion_class

    from nsllm.cli.root import root

    kind = get_completion_class(shell)
    assert kind is not None
    # Bash's class asks the installed bash for its version when the source is made; the template needs no bash.
    complete = kind(root, {}, "nsllm", "_NSLLM_COMPLETE")
    script = complete.source_template % complete.source_vars() if kind is BashComplete else complete.source()
    if as_json:
        emit({"shell": shell, "script": script})
    else:
        click.echo(script)
