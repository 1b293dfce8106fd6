"""The whole road on `nsllm devnet` with the default models: asked, certified, reused, anchored, verified offline."""

from __future__ import annotations

import json
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import openai
import pytest

from nsllm.governance.genesis import load_genesis
from nsllm.governance.verify import verify_receipt
from nsllm.node.api.testing import CHROMIUM_FLAGS, ask_and_wait, find_browser

pytestmark = [pytest.mark.process, pytest.mark.model, pytest.mark.timeout(900)]

QUESTIONS = tuple(
    (Path(__file__).parents[2] / "benchmarks" / "benign_questions.txt").read_text(encoding="utf-8").splitlines()[::7]
)[:20]
SEED = 7
"""A fixed seed, so that the same answers are judged in every run."""
TOKENS = 40


def client(net, index: int) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{net.url(index)}/v1", api_key="ignored on loopback", max_retries=0, timeout=300)


def stream(net, index: int, question: str, **fields) -> tuple[dict, dict, str]:
    """(headers, the reply's `nsllm` object, text) of a streamed answer."""
    about: dict = {}
    pieces: list[str] = []
    with client(net, index).chat.completions.with_streaming_response.create(
        model="default", messages=[{"role": "user", "content": question}], stream=True, max_tokens=TOKENS, **fields
    ) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            about.update(chunk.get("nsllm") or {})
            pieces += [choice["delta"].get("content") or "" for choice in chunk["choices"]]
        return dict(response.headers), about, "".join(pieces)


def events(net, index: int, kind: str) -> float:
    """How often the peer counted an event."""
    wanted = f'nsllm_events_total{{kind="{kind}"}} '
    lines = net.get(index, "/metrics").text.splitlines()
    return sum(float(line.removeprefix(wanted)) for line in lines if line.startswith(wanted))


@pytest.fixture(scope="module")
def answered(default_devnet) -> list[tuple[int, str, dict, str]]:
    """Twenty questions streamed over four peers, five each, one after the other on each: (peer, question, about, text).

    Returns once those that are published have reached their holders.
    """
    net = default_devnet

    def five(index: int) -> list[tuple[int, str, dict, str]]:
        return [
            (index, question, *stream(net, index, question, seed=SEED)[1:])
            for question in QUESTIONS[index :: len(net.places)]
        ]

    with ThreadPoolExecutor(len(net.places)) as pool:
        found = [answer for part in pool.map(five, range(len(net.places))) for answer in part]
    for index in range(len(net.places)):
        mine = sum(peer == index and about["publication"] == "pending" for peer, _, about, _ in found)
        net.until(lambda i=index, n=mine: events(net, i, "record_spread") >= n, f"{mine} records of {index} spread")
    return found


def test_twenty_benign_questions_are_published_and_certified_alike_on_every_peer(default_devnet, answered):
    net = default_devnet
    assert len(answered) == 20
    assert all(about["source"] == "engine" and text for _, _, about, text in answered)
    published = [row for row in answered if row[2]["publication"] == "pending"]
    assert len(published) >= 19, [(question, about["detail"]) for _, question, about, _ in answered]
    genesis = load_genesis(net.genesis)
    missed = 0
    for generator, question, about, text in published:
        receipt = net.receipt(generator, about["completion_id"])
        verify_receipt(receipt.text, genesis, "logged")
        own = receipt.json()
        assert len(receipt.headers["x-nsllm-signers"].split(",")) >= 3
        for index in range(4):
            if index == generator:
                continue
            headers, elsewhere, same = stream(net, index, question, seed=SEED)
            if headers["x-nsllm-source"] != "cache":
                missed += 1  # a look-up is given up after a second: on a busy machine the answer is made anew
                continue
            assert headers["x-nsllm-generator"] == net.places[generator].address
            assert headers["x-nsllm-score"] == receipt.headers["x-nsllm-score"]
            assert headers["x-nsllm-height"] == receipt.headers["x-nsllm-height"]
            assert same == text
            theirs = net.receipt(index, elsewhere["completion_id"]).json()
            assert theirs["certificate"] == own["certificate"]
            assert (theirs["signed"], theirs["leaf"], theirs["scores"]) == (own["signed"], own["leaf"], own["scores"])
    assert missed <= 6


def test_every_peer_holds_the_same_blocks_and_the_same_log(default_devnet, answered):
    net = default_devnet
    net.until_level()
    decided: list[list[tuple[int, bytes]]] = []
    for place in net.places:
        with closing(sqlite3.connect(f"file:{place.data_dir}/ledger.sqlite?mode=ro", uri=True)) as ledger:
            decided.append(ledger.execute("SELECT height, header_id FROM block ORDER BY height").fetchall())
    views = [net.status(index) for index in range(4)]
    assert len(decided[0]) == views[0]["consensus"]["height"] > 0
    assert all(blocks == decided[0] for blocks in decided)
    assert len({view["logs"]["network_log_root"] for view in views}) == 1
    assert views[0]["logs"]["network_log_size"] >= 19
    rows = [[(c["height"], c["time_ms"], c["records"], c["log_size"]) for c in v["certificates"]] for v in views]
    assert all(row == rows[0] for row in rows)
    assert "offence" not in "".join(net.log(index) for index in range(4))


def test_the_openai_client_works_unchanged(default_devnet):
    net = default_devnet
    api = client(net, 1)
    chat, encoder = (model.id for model in api.models.list())
    assert chat == "smollm2-135m-instruct"
    plain = api.chat.completions.create(
        model=chat, messages=[{"role": "user", "content": "What is an island?"}], max_tokens=TOKENS, seed=SEED
    )
    assert plain.choices[0].message.content
    assert plain.choices[0].finish_reason in {"stop", "length"}
    assert plain.usage.completion_tokens <= TOKENS
    pieces = api.chat.completions.create(
        model=chat,
        messages=[{"role": "user", "content": "What is an island?"}],
        max_tokens=TOKENS,
        seed=SEED + 1,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(pieces)
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 3
    assert chunks[-1].usage.total_tokens > 0
    alike = api.embeddings.create(model=chat, input=["a cat on a mat", "a kitten on a rug", "stock exchange"])
    assert api.embeddings.create(model=encoder, input="a cat on a mat").data[0].embedding == pytest.approx(
        alike.data[0].embedding, abs=1e-5
    )
    cat, kitten, stocks = (row.embedding for row in alike.data)
    assert len(cat) == 384
    assert dot(cat, kitten) > dot(cat, stocks) + 0.2
    with pytest.raises(openai.NotFoundError, match="gpt-4o"):
        api.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "hello"}])


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_a_cached_answer_stands_in_only_where_the_sampling_is_the_same(default_devnet):
    net = default_devnet
    question = "What is the capital of France?"
    first = net.ask(0, question)
    assert first["headers"]["x-nsllm-source"] == "engine"
    receipt = net.receipt(0, first["id"])
    net.until(lambda: net.ask(2, question)["headers"]["x-nsllm-source"] == "cache", "a hit on peer 2")
    for streamed in (False, True):
        if streamed:
            headers, about, text = stream(net, 3, question, extra_body={"max_tokens": 12})
        else:
            reply = net.ask(3, question)
            headers, about, text = reply["headers"], reply["nsllm"], reply["choices"][0]["message"]["content"]
        assert headers["x-nsllm-source"] == "cache"
        assert headers["x-nsllm-generator"] == net.places[0].address
        assert headers["x-nsllm-score"] == receipt.headers["x-nsllm-score"]
        assert headers["x-nsllm-height"] == receipt.headers["x-nsllm-height"]
        assert about["publication"] == "certified"
        assert text == first["choices"][0]["message"]["content"]
    for other in ({"seed": 5}, {"temperature": 0.9}, {"temperature": 0}, {"max_tokens": 11}, {"n": 2}):
        assert net.ask(2, question, **other)["headers"]["x-nsllm-source"] == "engine", other
    seeded = net.ask(1, question, seed=6)
    net.receipt(1, seeded["id"])
    net.until(lambda: net.ask(2, question, seed=6)["headers"]["x-nsllm-source"] == "cache", "a hit with the same seed")
    assert net.ask(2, question, seed=8)["headers"]["x-nsllm-source"] == "engine"


def test_a_private_question_leaves_nothing_anywhere(default_devnet):
    net = default_devnet
    net.until_level()
    mark, open_mark = "zanzibarquark", "gondolinquark"
    public = net.ask(1, f"What is a {open_mark}?", visibility="public")
    net.receipt(1, public["id"], "anchored")
    net.until_level()
    before = [scored(net, index) for index in range(4)]
    private = net.ask(1, f"What is a {mark}?", visibility="private")
    assert private["nsllm"]["publication"] == "private"
    assert private["headers"]["x-nsllm-visibility"] == "private"
    answer = net.get(1, f"/v1/receipts/{private['id']}")
    assert answer.status_code == 404
    assert answer.headers["x-nsllm-receipt"] == "none"
    assert "private" in answer.json()["error"]["message"]
    # Something public after it: whatever the private one had set going would have arrived by then.
    later = net.ask(1, f"Where is a {open_mark}?", visibility="public")
    net.receipt(1, later["id"], "anchored")
    net.until_level()
    assert [scored(net, index) - before[index] for index in range(4)] == [1, 1, 1, 1]
    assert holding(net, open_mark.encode())
    assert holding(net, mark.encode()) == []
    assert net.ask(1, f"What is a {mark}?", visibility="private")["headers"]["x-nsllm-source"] == "engine"


def scored(net, index: int) -> int:
    """Records that the peer's blocks have certified."""
    with closing(sqlite3.connect(f"file:{net.places[index].data_dir}/ledger.sqlite?mode=ro", uri=True)) as ledger:
        return ledger.execute("SELECT count(*) FROM scored").fetchone()[0]


def holding(net, text: bytes) -> list[Path]:
    """Files of any peer with this text in them."""
    root = net.genesis.parent
    return [path for path in root.rglob("*") if path.is_file() and text in path.read_bytes()]


@pytest.fixture(scope="module")
def receipt_file(default_devnet, nsllm, tmp_path_factory) -> Path:
    """What `nsllm ask --receipt` wrote: it returns once the answer is anchored."""
    path = tmp_path_factory.mktemp("receipt") / "r.json"
    asked = nsllm(
        "ask", "Why is the sky blue?", "--api", default_devnet.url(0), "--receipt", str(path), "--seed", "7",
        "--max-tokens", str(TOKENS), "--timeout", "200", "--json",
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    (line,) = asked.stdout.splitlines()
    told = json.loads(line)
    assert told["state"] == "anchored"
    assert told["anchor_tx"].startswith("0x")
    assert len(told["signers"]) >= 3
    assert told["score"] > 0
    return path


@pytest.fixture
def offline(tmp_path) -> dict[str, str]:
    """Surroundings in which opening a socket, or importing a network or model library, ends the process."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "def watch(event, args):\n"
        "    if event.startswith('socket.') or event == 'import' and args[0] in {'torch', 'libp2p', 'aiohttp'}:\n"
        "        sys.stderr.write(f'{event} {args[0]}')\n"
        "        __import__('os')._exit(99)\n"
        "sys.addaudithook(watch)\n"
    )
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_a_receipt_verifies_offline(default_devnet, nsllm, receipt_file, offline, tmp_path):
    genesis = tmp_path / "genesis.json"
    genesis.write_bytes(default_devnet.genesis.read_bytes())
    for level in ("certified", "logged", "anchored"):
        done = nsllm("verify", str(receipt_file), "--genesis", str(genesis), "--require", level, "--json", env=offline)
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads(done.stdout)
        assert report["ok"] is True
        assert report["level"] == "anchored"
        assert {field["standing"] for field in report["fields"].values()} == {"proved", "attested", "claimed"}
    assert nsllm("status", "--api", default_devnet.url(0), env=offline).returncode == 99  # the surroundings do watch


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('"text": "', '"text": "x', "leaf.record"),
        ('"format": "nsllm-receipt/1"', '"format": "nsllm-receipt/2"', "format"),
        ('  "format": ', '  "extra": 1,\n  "format": ', "extra"),
        ('"height": ', '"height":  ', "height"),
    ],
)
def test_a_receipt_that_was_changed_is_refused_by_name(
    default_devnet, nsllm, receipt_file, tmp_path, old: str, new: str, field: str
):
    text = receipt_file.read_text()
    assert old in text
    changed = tmp_path / "changed.json"
    changed.write_text(text.replace(old, new, 1))
    done = nsllm("verify", str(changed), "--genesis", str(default_devnet.genesis), "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["ok"] is False
    assert field in told["field"] or field in told["error"], told
    assert "Traceback" not in done.stderr


def test_a_receipt_below_the_required_level_is_refused(default_devnet, nsllm, receipt_file, tmp_path):
    receipt = json.loads(receipt_file.read_text())
    lower = tmp_path / "logged.json"
    lower.write_text(json.dumps({**receipt, "anchor": None}, indent=2, ensure_ascii=False) + "\n")
    genesis = str(default_devnet.genesis)
    assert nsllm("verify", str(lower), "--genesis", genesis, "--require", "logged").returncode == 0
    refused = nsllm("verify", str(lower), "--genesis", genesis, "--require", "anchored")
    assert refused.returncode == 1
    assert "anchored" in refused.stderr


def test_peers_lists_the_asked_peer_first(default_devnet, nsllm):
    net = default_devnet
    for index in (0, 3):
        done = nsllm("peers", "--api", net.url(index), "--json")
        assert done.returncode == 0
        (line,) = done.stdout.splitlines()
        told = json.loads(line)
        assert told["peers"][0]["address"] == net.places[index].address
        assert told["multiaddrs"][0] == told["peers"][0]["multiaddrs"][0]
        assert all("/p2p/" in address for address in told["multiaddrs"])
        assert len(told["peers"]) == 4


def test_metrics_count_what_happened(default_devnet, answered):
    for index in range(4):
        text = default_devnet.get(index, "/metrics").text
        assert 'nsllm_http_requests_total{method="POST",route="/v1/chat/completions",status="200"}' in text
        assert events(default_devnet, index, "answered") >= 5
        assert events(default_devnet, index, "block") > 0
        assert events(default_devnet, index, "offence") == 0


def test_keys_and_folders_are_private(default_devnet):
    for place in default_devnet.places:
        assert place.data_dir.stat().st_mode & 0o777 == 0o700
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in (place.data_dir / "keys").iterdir())
    assert not any(httpx.codes.is_success(default_devnet.get(0, path).status_code) for path in ("/admin", "/keys"))


@pytest.mark.browser
def test_the_page_shows_answer_score_and_certificate(default_devnet):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=list(CHROMIUM_FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        foreign: list[str] = []
        page.on("request", lambda request: foreign.append(request.url) if "127.0.0.1" not in request.url else None)
        seen = ask_and_wait(page, default_devnet.url(0), "Name one ocean.", timeout_s=240)
        assert seen.answer.strip()
        assert 0 < float(seen.score) <= 1
        assert "height" in seen.certificate
        assert seen.receipt_url.startswith("/v1/receipts/")
        assert foreign == []
        browser.close()
