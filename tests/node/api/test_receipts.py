"""`GET /v1/receipts/{id}`: levels, waiting, and receipts that will never be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from nsllm.node.views import ReceiptStatus

SIGNERS = ("0x" + "a1" * 20, "0x" + "b2" * 20)
TEXT = '{\n  "kind": "receipt",\n  "score": 1\n}\n'


def at(state, **fields):
    known = {"completion_id": "c1", "detail": "", "score_ppm": None, "height": None, "signers": (), "anchor_tx": None}
    return ReceiptStatus(**{**known, "state": state, "receipt_json": None, **fields})


CERTIFIED = at("certified", score_ppm=912_000, height=8, signers=SIGNERS, receipt_json=TEXT)
ANCHORED = at("anchored", score_ppm=912_000, height=8, signers=SIGNERS, anchor_tx="0x" + "3f" * 32, receipt_json=TEXT)


async def test_a_receipt_comes_byte_for_byte_with_its_level_in_headers(running):
    running.service.receipts["c1"] = ANCHORED
    answer = await running.http.get("/v1/receipts/c1")
    assert answer.status_code == 200
    assert answer.content == TEXT.encode()
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-nsllm-receipt"] == "anchored"
    assert answer.headers["x-nsllm-score"] == "0.912000"
    assert answer.headers["x-nsllm-height"] == "8"
    assert answer.headers["x-nsllm-signers"] == ",".join(SIGNERS)
    assert answer.headers["x-nsllm-anchor"] == "0x" + "3f" * 32


async def test_pending_is_202_with_the_state(running):
    running.service.receipts["c1"] = at("pending", detail="with the validators")
    answer = await running.http.get("/v1/receipts/c1")
    assert answer.status_code == 202
    assert answer.json() == {
        "id": "c1",
        "object": "receipt.pending",
        "state": "pending",
        "detail": "with the validators",
    }
    assert "x-nsllm-score" not in answer.headers


async def test_none_is_404_with_its_reason(running):
    running.service.receipts["c1"] = at("none", detail="the request was private")
    answer = await running.http.get("/v1/receipts/c1")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "no_receipt"
    assert "the request was private" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["unknown", "x" * 200])
async def test_an_unknown_id_is_404(running, path):
    answer = await running.http.get(f"/v1/receipts/{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


async def test_waiting_returns_as_soon_as_the_level_is_there(start):
    running = await start()
    running.service.receipts["c1"] = at("pending")
    answers = []

    async def wait() -> None:
        answers.append(await running.http.get("/v1/receipts/c1?wait=anchored&timeout_s=30"))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.05)
            running.service.receipts["c1"] = CERTIFIED
            await trio.sleep(0.05)
            assert not answers
            running.service.receipts["c1"] = ANCHORED
    assert answers[0].headers["x-nsllm-receipt"] == "anchored"


async def test_waiting_in_vain_returns_what_there_is(running):
    running.service.receipts["c1"] = CERTIFIED
    answer = await running.http.get("/v1/receipts/c1?wait=anchored&timeout_s=0.05")
    assert (answer.status_code, answer.headers["x-nsllm-receipt"]) == (200, "certified")
    assert "x-nsllm-receipt-final" not in answer.headers


async def test_waiting_ends_where_it_comes_no_further(running):
    running.service.receipts["c1"] = replace(CERTIFIED, final=True)
    with trio.fail_after(5):
        answer = await running.http.get("/v1/receipts/c1?wait=anchored&timeout_s=60")
    assert (answer.status_code, answer.headers["x-nsllm-receipt"]) == (200, "certified")
    assert answer.headers["x-nsllm-receipt-final"] == "true"


async def test_waiting_ends_when_there_will_be_none(running):
    running.service.receipts["c1"] = at("none", detail="expired")
    with trio.fail_after(5):
        answer = await running.http.get("/v1/receipts/c1?wait=certified&timeout_s=60")
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("query", "param"),
    [("wait=pending", "wait"), ("wait=x", "wait")]
    + [(f"wait=certified&timeout_s={t}", "timeout_s") for t in ("x", "-1", "61", "nan", "inf", "")],
)
async def test_bad_waits_are_named(running, query, param):
    running.service.receipts["c1"] = CERTIFIED
    answer = await running.http.get(f"/v1/receipts/c1?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_waiting_client_that_leaves_is_not_watched_for_any_more(start):
    running = await start()
    running.service.receipts["c1"] = at("pending")
    with trio.move_on_after(0.2):
        await running.http.get("/v1/receipts/c1?wait=anchored&timeout_s=60")
    with trio.fail_after(5):
        before = -1
        while running.service.receipts_asked != before:  # polls come every 10 ms while somebody watches
            before = running.service.receipts_asked
            await trio.sleep(0.2)
