"""The status page in headless Chromium against the fake service."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import trio

from nsllm.ids import Digest
from nsllm.node.attachments.attend import Note
from nsllm.node.chat import Source
from nsllm.node.errors import OverloadedError
from nsllm.node.views import PeerEvent, ReceiptStatus

SIGNERS = ("0x" + "a1" * 20, "0x" + "b2" * 20, "0x" + "c3" * 20)
RECEIPT = '{\n  "kind": "receipt"\n}\n'
PENDING = ReceiptStatus("", "pending", "", None, None, (), None, None)
CERTIFIED = ReceiptStatus("", "certified", "", 913_204, 43, SIGNERS, None, RECEIPT)
ANCHORED = replace(CERTIFIED, state="anchored", anchor_tx="0x" + "3f" * 32)

pytestmark = pytest.mark.browser


def step(page, name: str) -> str:
    return page.inner_text(f'[data-step="{name}"]')


@pytest.mark.parametrize("width", [1280, 375])
async def test_a_question_is_followed_to_its_anchor(running, browse, ask_and_wait, width):
    running.service.ladder = [(0, PENDING), (0.2, CERTIFIED), (0.6, ANCHORED)]

    def visit(page):
        seen = ask_and_wait(page, running.url, "Why is the sky blue?")
        assert seen.answer == "The sky scatters blue light."
        assert "engine" in seen.source
        assert seen.score == "0.913"
        assert "height 43" in seen.certificate
        assert "signed by 3 of 4" in seen.certificate
        page.wait_for_selector('[data-step="anchor"][data-state="done"]')
        with page.expect_download() as download:
            page.get_by_role("link", name="Download receipt").click()
        assert download.value.path().read_text() == RECEIPT
        assert download.value.suggested_filename.startswith("receipt-chatcmpl-")
        assert page.evaluate("document.documentElement.scrollWidth") == width

    await browse(visit, width=width)
    assert running.service.commands[0].visibility == "public"


async def test_files_go_along_with_a_question(running, browse, ask_and_wait):
    running.service.ladder = [(0, CERTIFIED)]
    digest = Digest(bytes(32))
    running.service.notes = (
        Note(digest, "image", "ocr+labels", ""),
        Note(digest, "table", "table", "rivers.csv"),
    )
    picture = b"\x89PNG\r\n\x1a\n and so on"

    def visit(page):
        page.goto(running.url)
        page.wait_for_selector("#live.on")
        page.get_by_label("Attach").set_input_files(
            [
                {"name": "map.png", "mimeType": "image/png", "buffer": picture},
                {"name": "rivers.csv", "mimeType": "application/vnd.ms-excel", "buffer": b"river,km"},
            ]
        )
        assert page.inner_text("#attached") == "map.png, rivers.csv"
        page.get_by_label("Question").fill("Which is longest?")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_selector('[data-step="certificate"][data-state="done"]')
        assert "image read and described, rivers.csv summed up" in page.inner_text("#measured")
        assert page.inner_text("#attached") == ""
        page.get_by_label("Question").fill("And without?")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_function("document.getElementById('asked').textContent === 'And without?'")
        page.wait_for_selector('[data-step="certificate"][data-state="done"]')

    await browse(visit)
    first, second = running.service.commands
    assert [(one.format, one.data, one.name) for one in first.attached] == [
        ("PNG", picture, ""),
        ("CSV", b"river,km", "rivers.csv"),
    ]
    assert second.attached == ()


async def test_the_panels_show_the_status_and_no_data_for_none(running, browse):
    running.service.status_now = None

    def visit(page):
        page.goto(running.url)
        page.wait_for_selector("#live.on")
        page.wait_for_selector("#identity dl")
        assert page.inner_text("#peer-name") == "atlas"
        assert page.inner_text("#ready") == "Ready"
        assert "4, quorum 3" in page.inner_text("#consensus")
        assert "none" in page.locator("#consensus dd").nth(7).inner_text()
        assert "38.4" in page.inner_text("#tiles")
        assert page.locator("#certificates tbody tr").count() == 6
        assert "no data" in page.locator("#peers tbody tr").nth(2).inner_text()
        assert "f = 1" in page.inner_text("#notices")

    await browse(visit)


async def test_a_stand_in_and_a_halt_are_said_plainly_and_none_is_no_number(running, browse, whole_status):
    status = whole_status
    engine = replace(status.engine, text=replace(status.engine.text, stand_in=True), tokens_per_second=None)
    running.service.status_now = replace(
        status,
        engine=engine,
        cache=dict.fromkeys(status.cache),
        consensus={
            **dict.fromkeys(status.consensus),
            "halted": "state root differs at height 9",
            "offences": [{"validator": "0x" + "5e" * 20, "kind": "amnesia", "height": 7, "epoch": 0, "block": 8}],
        },
        certificates=(),
        policy={},
        logs=dict.fromkeys(status.logs),
        anchors=(),
        peers=(),
    )

    def visit(page):
        page.goto(running.url)
        page.wait_for_selector("#identity dl")
        assert page.inner_text("#ready") == "Halted"
        assert "state root differs at height 9" in page.inner_text("#notices")
        assert "broke its lock at height 7" in page.inner_text("#consensus")
        assert "stand-in" in page.inner_text("#engine")
        assert page.inner_text("#cache").count("no data") == 7
        assert page.inner_text("#tiles").count("no data") == 3
        assert page.inner_text("#logs").count("no data") == 6

    await browse(visit)


async def test_a_cached_answer_and_a_private_one_say_so(running, browse):
    source = Source("cache", SIGNERS[1], score_ppm=913_204, height=43, age_ms=125_000, match="semantic")
    known = {"similarity_ppm": 912_000, "error_bound_ppm": 15_000, "model_digest": "0x" + "ab" * 32}
    running.service.source = replace(source, **known)
    running.service.publication = "private"

    def visit(page):
        page.goto(running.url)
        page.wait_for_selector("#live.on")
        page.get_by_label("Visibility").select_option("private")
        assert "no score and no receipt" in page.inner_text("#visibility-note")
        page.get_by_label("Question").fill("Why?")
        page.get_by_label("Question").press("Enter")
        page.wait_for_selector('[data-step="publication"][data-state="no"]')
        said = step(page, "source")
        assert "From the cache" in said
        for part in ("2 min old", "similarity 0.912", "at most 1.50 %", "model 0xabababab"):
            assert part in said
        assert "nothing leaves this peer" in step(page, "publication")
        assert not page.is_visible("#download")

    await browse(visit)
    assert running.service.commands[0].visibility == "private"


async def test_a_refusal_is_shown_where_the_answer_would_be(running, browse):
    running.service.fail_entering = OverloadedError("32 generations wait")

    def visit(page):
        page.goto(running.url)
        page.wait_for_selector("#live.on")
        page.get_by_label("Question").fill("Why?")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_selector("#answer .error")
        assert "32 generations wait" in page.inner_text("#answer")
        assert page.inner_text("#ask") == "Ask"
        page.errors.clear()  # the browser itself reports the 429

    await browse(visit)


async def test_stopping_cancels_the_generation(running, browse):
    running.service.words = ["word "] * 1000
    running.service.pace_s = 0.005

    def visit(page):
        page.goto(running.url)
        page.wait_for_selector("#live.on")
        page.get_by_label("Question").fill("Why?")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.locator("#answer").filter(has_text="word").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.wait_for_selector('[data-step="source"][data-state="no"]')

    await browse(visit)
    with trio.fail_after(5):
        await running.service.cancelled.wait()


async def test_markup_from_peers_and_models_stays_text(running, browse, whole_status):
    evil = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
    row = replace(running.service.peers()[1], peer_id=evil, address=None, roles=(evil,))
    running.service.status_now = replace(whole_status, name=evil, notices=(evil,), peers=(row,))
    running.service.words = [evil]

    def visit(page):
        page.goto(running.url)
        page.wait_for_selector("#live.on")
        page.get_by_label("Question").fill(evil)
        page.get_by_label("Question").press("Enter")
        page.wait_for_selector('[data-step="source"][data-state="done"]')
        assert page.inner_text("#answer") == evil
        assert page.locator("img, main script").count() == 0
        assert page.title() == f"{evil} · NS-LLM"
        page.errors.clear()  # no receipt for this id: the browser reports the 404

    await browse(visit)


async def test_events_appear_as_they_happen(running, browse):
    def visit(page):
        page.goto(running.url)
        page.wait_for_selector("#live.on")
        trio.from_thread.run_sync(
            running.service.senders[0].send_nowait, PeerEvent("certified", 1_700_000_000_000, {"height": 77})
        )
        page.wait_for_selector("#feed b")
        assert "Certified height 77" in page.inner_text("#feed")

    await browse(visit)


async def test_a_peer_with_a_key_asks_for_it_and_an_invite_for_the_admin_key(start, browse):
    running = await start(api_key="a-key-of-enough-characters")

    def visit(page):
        page.goto(running.url)
        page.wait_for_selector("#key-dialog[open]")
        page.get_by_label("Key", exact=True).fill("wrong")
        page.get_by_role("button", name="Unlock").click()
        page.get_by_text("That is not the key.").wait_for()
        page.get_by_label("Key", exact=True).fill("a-key-of-enough-characters")
        page.get_by_role("button", name="Unlock").click()
        page.wait_for_selector("#live.on")
        page.get_by_role("button", name="Invite a machine").click()
        page.get_by_label("Key", exact=True).fill("nsllm-admin-0123456789abcdef")
        page.get_by_role("button", name="Unlock").click()
        page.wait_for_selector("#invite-dialog[open]")
        assert page.inner_text("#invite-text") == "nsllm join nsllm-invite-v1-abc"
        cookies = page.context.cookies()
        assert [(c["httpOnly"], c["sameSite"]) for c in cookies] == [(True, "Strict")]
        assert json.loads(page.evaluate("JSON.stringify([localStorage.length, sessionStorage.length])")) == [0, 0]
        page.errors.clear()  # the wrong key's 401

    await browse(visit)


async def test_the_page_asks_nobody_else(running, browse):
    asked: list[str] = []

    def visit(page):
        page.on("request", lambda request: asked.append(request.url))
        page.goto(running.url)
        page.wait_for_selector("#identity dl")

    await browse(visit)
    assert asked
    assert all(url.startswith(running.url) for url in asked)
