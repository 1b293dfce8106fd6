"""`nsllm receipt`: the receipt of a completion, unchanged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from nsllm.cli.options import api_options
from nsllm.cli.terminal import emit, examples, json_option

if TYPE_CHECKING:
    from nsllm.cli.client import Receipt


@click.command(
    short_help="Fetch the receipt of an answer.",
    epilog=examples(
        "nsllm receipt chatcmpl-3f9c > r.json",
        "nsllm receipt chatcmpl-3f9c --wait anchored --api http://127.0.0.1:8701 > r.json",
    ),
)
@click.argument("completion_id", metavar="ID")
@api_options
@click.option("--wait", type=click.Choice(["certified", "logged", "anchored"]), help="Wait until it has got that far.")
@click.option("--timeout", "timeout_s", type=float, default=60.0, show_default=True, help="Seconds to wait.")
@json_option
def receipt(*, completion_id: str, api: str, key: str, wait: str | None, timeout_s: float, as_json: bool) -> None:
    """Print the receipt of the completion ID on standard output, exactly as the peer gives it."""
    import trio

    from nsllm.cli.errors import NoReceiptError

    found: Receipt = trio.run(_fetch, api, key, completion_id, wait, timeout_s)
    if found.state == "none":
        raise NoReceiptError(found.detail or f"there is no receipt for {completion_id}")
    if not found.text:
        raise NoReceiptError(
            f"the receipt of {completion_id} is pending: {found.detail or 'not certified yet'}",
            hint="wait for it with --wait certified",
        )
    if wait is not None and LEVELS.index(found.state) < LEVELS.index(wait):
        if found.final:
            raise NoReceiptError(
                f"the receipt stays {found.state}: the peer does not have the record's block",
                hint="fetch it as it is, without --wait",
            )
        raise NoReceiptError(f"the receipt is {found.state} after {timeout_s:g} s, not yet {wait}")
    if as_json:
        document = json.loads(found.text)
        about = {"score": found.score, "height": found.height, "signers": list(found.signers)}
        emit({"id": completion_id, "state": found.state, **about, "anchor_tx": found.anchor_tx, "receipt": document})
    else:
        click.echo(found.text, nl=False)


LEVELS = ("pending", "certified", "logged", "anchored")


async def _fetch(url: str, key: str, completion_id: str, wait: str | None, timeout_s: float) -> Receipt:
    import trio

    from nsllm.cli.client import Api

    async with Api(url, key) as api:
        deadline = trio.current_time() + timeout_s
        while True:
            left_s = max(0.0, deadline - trio.current_time())
            found = await api.receipt(completion_id, wait=wait, timeout_s=left_s)
            done = wait is None or found.state == "none" or LEVELS.index(found.state) >= LEVELS.index(wait)
            if done or found.final or left_s <= 0:
                return found
