"""What the terminal shows: results on standard output, everything else on standard error, colours only for people."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from nsllm.node.engine.fetch import Progress, Report

F = TypeVar("F", bound=Callable[..., Any])


def emit(result: Mapping[str, object]) -> None:
    """One object as one line of JSON on standard output."""
    click.echo(json.dumps(result, ensure_ascii=False, separators=(",", ":")))


def note(text: str) -> None:
    """A line for the person, on standard error; rich markup."""
    console().print(text, highlight=False, soft_wrap=True)


def fail(message: str, hint: str) -> None:
    """An error and what to do about it, on standard error."""
    click.echo(click.style("error: ", fg="red", bold=True) + message, err=True)
    if hint:
        click.echo(click.style(" hint: ", fg="cyan") + hint, err=True)


@functools.cache
def console() -> Console:
    """Rich's console on standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@functools.cache
def out() -> Console:
    """Rich's console on standard output."""
    from rich.console import Console

    return Console(highlight=False)


def escape(text: str) -> str:
    """Text that stands in markup as it is."""
    from rich.markup import escape as rich_escape

    return rich_escape(text)


def json_option(command: F) -> F:
    """`--json`, the same for every command."""
    decorate = click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="One line, one JSON object, on standard output; progress on standard error.",
    )
    return decorate(command)


def examples(*lines: str) -> str:
    """Help epilog with examples, kept as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


@contextmanager
def fetching() -> Iterator[Report]:
    """Progress of fetching and converting models: a bar for people, a line a step for logs."""
    if not console().is_terminal:
        yield _line_reporter()
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    with Bars(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=console(),
        transient=True,
    ) as bars:
        tasks: dict[str, Any] = {}

        def report(progress: Progress) -> None:
            if progress.step not in tasks:
                tasks[progress.step] = bars.add_task(progress.step, total=progress.total)
            bars.update(tasks[progress.step], completed=progress.done, total=progress.total)
            if progress.done >= progress.total > 0:
                bars.console.print(f"[green]✓[/] {progress.step}")
                bars.remove_task(tasks.pop(progress.step))

        yield report


def _line_reporter() -> Report:
    tenths: dict[str, int] = {}

    def report(progress: Progress) -> None:
        tenth = progress.done * 10 // max(progress.total, 1)
        if tenths.get(progress.step) != tenth:
            tenths[progress.step] = tenth
            print(f"{progress.step}: {tenth * 10} %", file=sys.stderr, flush=True)  # noqa: T201 - a log line

    return report
