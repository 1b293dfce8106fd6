"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_API: Final = "http://127.0.0.1:8700"


def api_options(command: F) -> F:
    """`--api` and `--key`, the same for every command that talks to a peer."""
    key = click.option("--key", envvar="NSLLM_API_KEY", default="", help="API key, where the peer wants one.")
    api = click.option(
        "--api", envvar="NSLLM_API", default=DEFAULT_API, show_default=True, metavar="URL", help="The peer to talk to."
    )
    return api(key(command))


def data_dir_option(command: F) -> F:
    """`--data-dir` of one peer."""
    return click.option(
        "--data-dir", type=click.Path(path_type=Path), help="The peer's folder.  [default: ~/.local/share/nsllm]"
    )(command)


def data_dir_or_default(data_dir: Path | None) -> Path:
    """The folder that was given, or the default one."""
    from nsllm.node.config import default_data_dir

    return data_dir or default_data_dir()
