"""`nsllm ask`: a question to a peer, its answer streamed, its score and receipt fetched."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from nsllm.cli.options import api_options
from nsllm.cli.terminal import emit, escape, examples, json_option, note
from nsllm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nsllm.cli.client import Api, Receipt

SCORE_WAIT_S: Final = 10.0
"""How long an answer's score is waited for when nobody asked for a receipt: p50 is below 5 s on a devnet."""


HOW: Final = {
    "ocr+labels": "its text and what it likely shows were put into words for the model",
    "native": "the model saw it",
    "table": "its columns and first rows were put into words for the model",
    "json": "its content was put into words for the model",
}
"""What an attachment's `how` means."""


@click.command(
    short_help="Ask a question; the answer streams.",
    epilog=examples(
        "nsllm ask 'Why is the sky blue?'",
        "nsllm ask 'Name three rivers.' --api http://127.0.0.1:8701 --receipt r.json",
        "nsllm ask 'Tell me a story.' --temperature 0.8 --seed 7 --max-tokens 200 --visibility private",
        "nsllm ask 'What is the total?' --image invoice.png --data prices.csv",
        "nsllm ask 'Who was Ada Lovelace?' --json-schema person.json",
        "nsllm ask 'When was the lighthouse built?' --retrieve 3",
        "echo 'What is 2 + 2?' | nsllm ask - --json",
    ),
)
@click.argument("text")
@api_options
@click.option("--image", "images", type=click.Path(path_type=Path, dir_okay=False), multiple=True, metavar="FILE",
              help="A picture to ask about (PNG, JPEG, WebP); may be given several times.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path, dir_okay=False), multiple=True, metavar="FILE",
              help="A table to ask about (.csv, .json); may be given several times.")  # fmt: skip
@click.option("--retrieve", type=click.IntRange(0, 8), metavar="N",
              help="Let the model read up to N passages of shared documents, and cite them.")  # fmt: skip
@click.option("--receipt", "receipt_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Wait until the answer is anchored and write its receipt here.")  # fmt: skip
@click.option(
    "--visibility",
    metavar="[private|public|group|group:NAME]",
    help="Who may read question and answer; `group` is the peer's default one.",
)
@click.option("--model", help="Model to ask.  [default: the peer's chat model]")
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer, in tokens.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="Sampling temperature.")
@click.option("--seed", type=int, help="Seed of the sampling.")
@click.option("--json-schema", "schema_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="JSON schema that the answer keeps to.")  # fmt: skip
@click.option(
    "--timeout", "timeout_s", type=float, default=60.0, show_default=True, help="Seconds to wait for the anchor."
)
@json_option
def ask(
    *,
    text: str,
    api: str,
    key: str,
    images: tuple[Path, ...],
    data: tuple[Path, ...],
    retrieve: int | None,
    receipt_file: Path | None,
    visibility: str | None,
    model: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    schema_file: Path | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Ask TEXT (`-`: standard input), about the files that go along with it. The answer streams to standard output;
    source, score and height follow on standard error. With --receipt the command returns once the answer is anchored
    on the chain, or fails.
    """  # noqa: D205 - help text
    import trio

    from nsllm.cli.attaching import content_with

    question = sys.stdin.read() if text == "-" else text
    optional = {
        "visibility": visibility,
        "retrieve": retrieve,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    body: dict[str, Any] = {"messages": [{"role": "user", "content": content_with(question, images, data)}]}
    body.update({name: value for name, value in optional.items() if value is not None})
    if model is not None:
        body["model"] = model
    if schema_file is not None:
        named = {"name": "answer", "schema": _schema(schema_file), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    level = None if receipt_file is None else "anchored"
    answer, receipt = trio.run(_ask, api, key, body, level, timeout_s, as_json)
    if receipt_file is not None and receipt is not None:
        try:
            receipt_file.write_text(receipt.text)
        except OSError as error:
            raise UsageError(f"cannot write {receipt_file}: {error.strerror}") from None
    if as_json:
        emit(_described(answer, receipt, receipt_file))
    else:
        _tell(answer, receipt, receipt_file)


def _schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UsageError(f"{path} holds no JSON schema", hint='such as {"type": "object", "properties": {…}}')
    return schema


async def _ask(
    url: str, key: str, body: dict[str, Any], level: str | None, timeout_s: float, quiet: bool
) -> tuple[Answer, Receipt | None]:
    from nsllm.cli.client import Api

    async with Api(url, key) as api:
        answer = await stream_answer(api, body, (lambda _: None) if quiet else _write)
        if not quiet:
            click.echo()
        if level is None:
            return answer, await scored(api, answer)
        return answer, await wait_for_level(api, answer, level, timeout_s)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that has ended."""

    completion_id: str
    model: str
    text: str
    finish_reason: str
    source: str
    about: dict[str, Any]
    """The reply's `nsllm` object: generator, score_ppm, height, visibility, publication, detail, receipt."""


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


async def stream_answer(api: Api, body: dict[str, Any], show: Callable[[str], None]) -> Answer:
    """Ask, and give each piece of the answer to `show` as it comes."""
    if "model" not in body:
        body = {**body, "model": await api.chat_model()}
    pieces: list[str] = []
    about: dict[str, Any] = {}
    reason, completion_id, model = "", "", str(body["model"])
    async with api.chat(body) as (headers, chunks):
        async for chunk in chunks:
            completion_id, model = str(chunk["id"]), str(chunk["model"])
            about.update(chunk.get("nsllm") or {})
            for choice in chunk["choices"]:
                piece = choice["delta"].get("content") or ""
                if piece:
                    pieces.append(piece)
                    show(piece)
                reason = choice.get("finish_reason") or reason
        source = headers.get("x-nsllm-source", str(about.get("source", "")))
    return Answer(completion_id, model, "".join(pieces), reason, source, about)


async def wait_for_level(api: Api, answer: Answer, level: str, timeout_s: float, *, quiet: bool = False) -> Receipt:
    """The receipt once it has reached `level`; each level on the way is a line on standard error, unless `quiet`.

    Raises:
        NoReceiptError: there will be none, or not in time; says why.
    """
    import trio

    from nsllm.cli.errors import NoReceiptError

    deadline = trio.current_time() + timeout_s
    state = ""
    while True:
        left_s = max(0.0, deadline - trio.current_time())
        # Short polls, so that a person sees the receipt climb from level to level.
        receipt = await api.receipt(answer.completion_id, wait=_next(state, level), timeout_s=left_s)
        if receipt.state == "none":
            hint = "ask with --visibility public" if answer.about.get("visibility") == "private" else ""
            raise NoReceiptError(receipt.detail or "there is no receipt for this answer", hint=hint)
        if receipt.state != state:
            state = receipt.state
            if not quiet:
                note(f"[dim]receipt: {state}{_at(receipt)}[/]")
        if state in {level, "anchored"}:
            return receipt
        if receipt.final:
            raise NoReceiptError(
                f"the receipt of {answer.completion_id} stays {state}: the peer does not have the record's block",
                hint=f"fetch it as it is: nsllm receipt {answer.completion_id} --api {api.url}",
            )
        if left_s <= 0:
            raise NoReceiptError(
                f"the receipt of {answer.completion_id} is {state} after {timeout_s:g} s, not yet {level}",
                hint=f"fetch it later: nsllm receipt {answer.completion_id} --wait {level} --api {api.url}",
            )


def _next(state: str, level: str) -> str:
    levels = ("certified", "logged", "anchored")
    following = {"": 0, "pending": 0, "certified": 1, "logged": 2, "anchored": 2}[state]
    return levels[min(following, levels.index(level))]


def _at(receipt: Receipt) -> str:
    return f", height {receipt.height}, {len(receipt.signers)} signers" if receipt.height is not None else ""


async def scored(api: Api, answer: Answer) -> Receipt | None:
    """The receipt of a published answer once it is certified, if that comes soon; None otherwise."""
    if answer.about.get("publication") not in {"pending", "certified"}:
        return None
    receipt = await api.receipt(answer.completion_id, wait="certified", timeout_s=SCORE_WAIT_S)
    return None if receipt.state in {"none", "pending"} else receipt


def score_of(answer: Answer, receipt: Receipt | None) -> float | None:
    """The certified score: the receipt's, or the one that the reply came with."""
    if receipt is not None and receipt.score is not None:
        return receipt.score
    ppm = answer.about.get("score_ppm")
    return None if ppm is None else int(ppm) / 1_000_000


def height_of(answer: Answer, receipt: Receipt | None) -> int | None:
    """The certificate's height."""
    if receipt is not None and receipt.height is not None:
        return receipt.height
    height = answer.about.get("height")
    return None if height is None else int(height)


def _tell(answer: Answer, receipt: Receipt | None, receipt_file: Path | None) -> None:
    score, height = score_of(answer, receipt), height_of(answer, receipt)
    source = {"cache": "[cyan]cache[/]", "engine": "[green]engine[/]"}.get(answer.source, answer.source)
    parts = [f"source {source}"]
    if score is not None:
        parts.append(f"score [bold]{score:.3f}[/]")
    if height is not None:
        parts.append(f"height {height}")
    if score is None:
        parts.append(f"{answer.about.get('publication', 'not scored')}{_why(answer)}")
    note("[dim]──[/] " + " [dim]·[/] ".join(parts))
    for row in answer.about.get("attachments", ()):
        note(f"[dim]── {row['name'] or row['kind']} {row['digest'][:14]}…: {HOW.get(row['how'], row['how'])}[/]")
    for row in answer.about.get("evidence", ()):
        start, end = row["span"]
        said = f"{escape(row['source'])}, characters {start} to {end}, shared by {row['member'][:12]}…"
        note(f"[dim]── \\[{row['number']}] {said}[/]")
    if answer.finish_reason == "content_filter":
        note(f"[yellow]withheld by the network's policy[/]{_why(answer)}")
    if receipt_file is not None:
        note(f"[dim]──[/] receipt {receipt_file}, check it with: nsllm verify {receipt_file} --genesis genesis.json")
    elif answer.about.get("receipt"):
        note(f"[dim]── nsllm receipt {answer.completion_id}[/]")


def _why(answer: Answer) -> str:
    detail = answer.about.get("detail")
    return f": {detail}" if detail else ""


def _described(answer: Answer, receipt: Receipt | None, receipt_file: Path | None) -> dict[str, object]:
    return {
        "id": answer.completion_id,
        "model": answer.model,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "source": answer.source,
        "generator": answer.about.get("generator"),
        "score": score_of(answer, receipt),
        "height": height_of(answer, receipt),
        "visibility": answer.about.get("visibility"),
        "publication": answer.about.get("publication"),
        "detail": answer.about.get("detail", ""),
        "attachments": answer.about.get("attachments", []),
        "evidence": answer.about.get("evidence", []),
        "state": None if receipt is None else receipt.state,
        "signers": [] if receipt is None else list(receipt.signers),
        "anchor_tx": None if receipt is None else receipt.anchor_tx,
        "receipt": None if receipt_file is None else str(receipt_file),
    }
