"""Documents over HTTP: taken in, listed and withdrawn with the admin key; answers say what they cite."""

from __future__ import annotations

import pytest

from nsllm.cache_dht.document_store import DocumentRow
from nsllm.node.chat import Citation
from nsllm.node.service import Piece

ADMIN = {"X-NSLLM-Admin-Key": "nsllm-admin-0123456789abcdef"}
PATH = "/admin/documents"
DIGEST = "0x" + "11" * 32
ROW = DocumentRow(bytes(20), bytes([0x11]) * 32, "a.txt", 3, 4096, 1_000)
CHUNK = {"number": 0, "start": 0, "end": 4, "text": "Tides"}
BODY = {"document": DIGEST, "source": "a.txt", "chunks": [CHUNK]}


async def test_documents_are_taken_in_listed_and_withdrawn(running):
    answer = await running.http.post(PATH, json=BODY, headers=ADMIN)
    assert (answer.status_code, answer.json()["added"]) == (200, 1)
    assert running.service.taken == [(bytes([0x11]) * 32, "a.txt", (Piece(0, 0, 4, "Tides"),))]
    running.service.shelf = (ROW, DocumentRow(bytes([1]) * 20, bytes(32), "theirs.txt", 1, 10, 5))
    listed = (await running.http.get(PATH, headers=ADMIN)).json()["data"]
    assert listed == [
        {
            "document": DIGEST,
            "source": "a.txt",
            "member": "0x" + "00" * 20,
            "chunks": 3,
            "bytes": 4096,
            "created_ms": 1_000,
        }
    ]
    assert len((await running.http.get(f"{PATH}?all=1", headers=ADMIN)).json()["data"]) == 2
    gone = await running.http.delete(f"{PATH}/{DIGEST}", headers=ADMIN)
    assert gone.json() == {"object": "document", "document": DIGEST, "removed": 3}
    missing = await running.http.delete(f"{PATH}/{'22' * 32}", headers=ADMIN)
    assert missing.status_code == 404


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"document": "0x12"}, "document"),
        ({"source": ""}, "source"),
        ({"source": "a\nb"}, "source"),
        ({"chunks": []}, "chunks"),
        ({"chunks": [CHUNK] * 2}, "chunks"),
        ({"chunks": [{**CHUNK, "start": 4}]}, "chunks[0].end"),
        ({"chunks": [{**CHUNK, "text": ""}]}, "chunks[0].text"),
        ({"chunks": [{**CHUNK, "number": n} for n in range(65)]}, "chunks"),
        ({"extra": 1}, "extra"),
    ],
)
async def test_a_body_that_says_something_else_is_refused(running, change, param):
    answer = await running.http.post(PATH, json={**BODY, **change}, headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert running.service.taken == []


async def test_without_the_admin_key_nothing_is_shared_or_listed(running):
    answers = [
        await running.http.get(PATH),
        await running.http.post(PATH, json=BODY),
        await running.http.delete(f"{PATH}/{DIGEST}"),
    ]
    assert [answer.status_code for answer in answers] == [401, 401, 401]
    assert running.service.taken == []


@pytest.mark.parametrize(
    ("sent", "wanted"), [({}, None), ({"retrieve": True}, True), ({"retrieve": 0}, 0), ({"retrieve": 8}, 8)]
)
async def test_a_request_says_how_many_passages(running, sent, wanted):
    body = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Why?"}], **sent}
    assert (await running.http.post("/v1/chat/completions", json=body)).status_code == 200
    assert running.service.commands[-1].retrieve is wanted


@pytest.mark.parametrize("sent", [9, -1, "3", 1.5])
async def test_another_number_of_passages_is_refused(running, sent):
    body = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Why?"}], "retrieve": sent}
    answer = await running.http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "retrieve")


async def test_an_answer_says_what_it_cites(running):
    running.service.citations = (Citation(bytes([2]) * 32, bytes([1]) * 32, "a.txt", 10, 90, bytes([3]) * 20),)
    body = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": "Why?"}], "retrieve": 1}
    answer = await running.http.post("/v1/chat/completions", json=body)
    assert answer.headers["x-nsllm-evidence"] == "0x" + "02" * 32
    assert answer.json()["nsllm"]["evidence"] == [
        {
            "number": 1,
            "source": "a.txt",
            "span": [10, 90],
            "chunk": "0x" + "02" * 32,
            "document": "0x" + "01" * 32,
            "member": "0x" + "03" * 20,
        }
    ]
    running.service.citations = ()
    answer = await running.http.post("/v1/chat/completions", json=body)
    assert "x-nsllm-evidence" not in answer.headers
    assert answer.json()["nsllm"]["evidence"] == []
