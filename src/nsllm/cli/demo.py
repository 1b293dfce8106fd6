"""`nsllm demo`: a devnet, and one question's whole road through it, told as it happens. `make up` runs it."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from nsllm.cli.ask import Answer, height_of, score_of, stream_answer, wait_for_level
from nsllm.cli.devnet import DEVNET_STOP_S, lay_out_devnet, tell
from nsllm.cli.errors import CliError, StepError
from nsllm.cli.terminal import emit, escape, examples, json_option, note
from nsllm.errors import NsllmError

if TYPE_CHECKING:
    from nsllm.cli.client import Api, Receipt
    from nsllm.simulations.devnet import Devnet, DevnetPeer

QUESTIONS: Final = (
    "Why is the sky blue? Answer in one short paragraph.",
    "What is a lighthouse for? Answer in one short paragraph.",
    "How do bees make honey? Answer in one short paragraph.",
)
"""The next one is asked if an answer turns out too poor for the policy: a small model's now and then does."""
ANCHOR_S: Final = 60.0
SPREAD_S: Final = 20.0
"""How long a certified record may take to reach a holder."""
ANNOUNCE_S: Final = 1.5
"""What a holder needs to announce its shard in the DHT."""
HIT_ROUNDS: Final = 3
"""A look-up that a busy machine holds up is given up; so often are all peers asked."""
MAX_TOKENS: Final = 96


@click.command(
    short_help="Run a devnet and show a question's whole road.",
    epilog=examples(
        "nsllm demo", "nsllm demo --once --json", "make up ONCE=1                   # the same, from a fresh clone"
    ),
)
@click.option("--peers", type=click.IntRange(4, 64), default=4, show_default=True, help="How many peers.")
@click.option("--base-port", type=int, default=8700, show_default=True, help="Peer i has API and page on this plus i.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Keep the network here.  [default: a temporary folder]"
)
@click.option("--question", help=f"What to ask.  [default: {QUESTIONS[0]}]")
@click.option("--once", is_flag=True, help="Stop after the demonstration instead of serving on.")
@json_option
def demo(*, peers: int, base_port: int, data_dir: Path | None, question: str | None, once: bool, as_json: bool) -> None:
    """Start a devnet and ask a question: the streamed answer, its certified score, a cache hit on another peer, the
    anchor on the chain, and a receipt that verifies offline. Then serve until a signal. A step that fails is named.
    """  # noqa: D205 - help text
    from nsllm.cli.lifetime import serve

    questions = QUESTIONS if question is None else (question,)
    with _folder(data_dir) as folder:
        note("[bold]NS-LLM[/] [dim]one question's whole road, on real peers on this machine[/]\n")
        laid = lay_out_devnet(peers, base_port, folder)
        told: dict[str, object] = {}
        stopped = serve(lambda: _run(laid, questions, told, once=once), stop_s=DEVNET_STOP_S)
        if as_json and told:
            emit(told)
        if stopped and not told:
            raise StepError("stopped before the demonstration had ended")


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """The given folder, or a temporary one, which stays only if something went wrong: then its logs are wanted."""
    if given is not None:
        yield given
        return
    folder = Path(tempfile.mkdtemp(prefix="nsllm-demo-"))
    try:
        yield folder
    except (NsllmError, ExceptionGroup):
        note(f"[dim]the peers' logs are in {folder}/peer-*/peer.log[/]")
        raise
    shutil.rmtree(folder, ignore_errors=True)


async def _run(laid: Devnet, questions: Sequence[str], told: dict[str, object], *, once: bool) -> None:
    import trio

    from nsllm.simulations.devnet import run_devnet

    async with trio.open_nursery() as nursery:
        with _step("start the peers"):
            await nursery.start(run_devnet, laid, tell)
        told.update(await _road(laid, questions))
        note("\n[bold green]✓ the whole road works[/]  pages:")
        for peer in laid.peers:
            note(f"  peer {peer.index}   [link={peer.url}]{peer.url}[/link]")
        if once:
            nursery.cancel_scope.cancel()
            return
        note(f"  ask      nsllm ask 'Name three rivers.' --api {laid.peers[0].url}")
        note("  stop     Ctrl-C")


async def _road(laid: Devnet, questions: Sequence[str]) -> dict[str, object]:
    """Every step in order; what was seen."""
    from nsllm.cli.client import Api

    async with Api(laid.peers[0].url) as api:
        with _step("ask peer 0"):
            question, answer = await _published(api, questions)
        with _step("score the answer"):
            certified = await wait_for_level(api, answer, "certified", ANCHOR_S, quiet=True)
            score, height = score_of(answer, certified), height_of(answer, certified)
            if score is None or height is None or not certified.signers:
                raise StepError("the certified receipt came without score, height or signers")
            note(f"[bold]2[/] scored      [bold green]{score:.3f}[/]  signed by {_names(laid, certified)}")
            note(f"[bold]3[/] certified   height {height}, {len(certified.signers)} of {len(laid.peers)} validators")
        with _step("reuse the answer on another peer"):
            other, hit, held = await _hit(laid, question, answer)
            whence = "from its own store" if held else "fetched from a holder and verified"
            note(f"[bold]4[/] cache hit   on peer {other.index}, {whence}: same answer, [cyan]not generated again[/]")
        with _step("anchor the log"):
            anchored = await wait_for_level(api, answer, "anchored", ANCHOR_S, quiet=True)
            note(f"[bold]5[/] anchored    transaction {anchored.anchor_tx or 'unnamed'}")
        with _step("verify the receipt offline"):
            level = await _verify(laid, anchored)
            note(f"[bold]6[/] verified    offline, in a process of its own: [green]{level}[/]")
    return {
        "answer": answer.text,
        "score": score,
        "height": height,
        "signers": list(certified.signers),
        "cache_peer": other.index,
        "cache_held": held,
        "cache_height": height_of(hit, certified),
        "anchor_tx": anchored.anchor_tx,
        "verified": level,
        "pages": [peer.url for peer in laid.peers],
        "genesis": str(laid.genesis_file),
    }


async def _published(api: Api, questions: Sequence[str]) -> tuple[str, Answer]:
    """The first question whose answer the policy lets out, and that answer."""
    why = ""
    for question in questions:
        note(f"\n[bold]1[/] ask peer 0  [italic]{escape(question)}[/]\n")
        answer = await stream_answer(api, _body(question), _write)
        click.echo("\n", err=True)
        if answer.about.get("publication") in {"pending", "certified"}:
            return question, answer
        why = f"{answer.about.get('publication')}, {answer.about.get('detail') or answer.finish_reason}"
        note(f"[yellow]not published[/]  {escape(why)}")
    raise StepError(f"the answer was not published: {why}")


@contextmanager
def _step(name: str) -> Iterator[None]:
    """Errors inside carry the step's name."""
    try:
        yield
    except* NsllmError as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        assert isinstance(first, NsllmError)
        raise StepError(f"step '{name}' failed: {first.message}", hint=first.hint) from None


def _body(question: str) -> dict[str, object]:
    return {
        "messages": [{"role": "user", "content": question}],
        "visibility": "public",
        "max_tokens": MAX_TOKENS,
    }


def _write(text: str) -> None:
    # The answer is for people; with --json standard output is for one object only.
    sys.stderr.write(text)
    sys.stderr.flush()


def _names(laid: Devnet, receipt: Receipt) -> str:
    by_address = {"0x" + peer.address.hex(): f"peer {peer.index}" for peer in laid.peers}
    return ", ".join(by_address.get(signer, signer[:10]) for signer in receipt.signers)


async def _hit(laid: Devnet, question: str, answer: Answer) -> tuple[DevnetPeer, Answer, bool]:
    """The same question on another peer, served from the cache: the peer, its reply, and whether it held the record.

    Peers that hold fewest records are asked first; with two replicas in each of two spaces there may be none without.
    """
    from nsllm.cli.client import Api

    await _spread(laid)
    seen: list[str] = []
    rows = sorted([(await _cache(peer, "records"), peer) for peer in laid.peers[1:]], key=lambda row: row[0])
    for held, peer in rows * HIT_ROUNDS:
        async with Api(peer.url) as api:
            again = await stream_answer(api, _body(question), lambda _: None)
        if again.source == "cache":
            if again.text == answer.text:
                return peer, again, held > 0
            if again.about.get("generator") == answer.about.get("generator"):
                raise CliError(f"peer {peer.index} served another answer from the cache")
        seen.append(f"peer {peer.index} answered from its {again.source or 'unnamed source'}")
    raise CliError(f"no cache hit: {'; '.join(seen)}")


async def _spread(laid: Devnet) -> None:
    """Wait until the generator has pushed the record to a holder, and the holder could announce it."""
    import trio

    deadline = trio.current_time() + SPREAD_S
    while trio.current_time() < deadline:
        if any([await _cache(peer, "records") for peer in laid.peers[1:]]):
            await trio.sleep(ANNOUNCE_S)
            return
        await trio.sleep(0.3)
    raise CliError(f"no other peer held the record within {SPREAD_S:g} s")


async def _cache(peer: DevnetPeer, name: str) -> int:
    from nsllm.cli.client import Api

    async with Api(peer.url) as api:
        value = ((await api.get("/status.json")).get("cache") or {}).get(name)
    return int(value or 0)


async def _verify(laid: Devnet, receipt: Receipt) -> str:
    """The level that `nsllm verify` finds, run as a user would run it."""
    import trio

    path = trio.Path(laid.data_dir) / "receipt.json"
    await path.write_text(receipt.text)
    command = [sys.executable, "-m", "nsllm", "verify", str(path), "--genesis", str(laid.genesis_file)]
    done = await trio.run_process(
        [*command, "--require", "anchored", "--json"], capture_stdout=True, capture_stderr=True, check=False
    )
    try:
        verdict = json.loads(done.stdout)
    except ValueError:
        raise CliError(f"nsllm verify said nothing: {done.stderr.decode(errors='replace')[-500:]}") from None
    if done.returncode or not verdict.get("ok"):
        raise CliError(f"nsllm verify refused it: {verdict.get('error')}")
    return str(verdict["level"])
