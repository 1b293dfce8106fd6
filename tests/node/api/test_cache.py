"""Records over HTTP: page by page out of the store, and into it with a word about each; the admin key opens both."""

from __future__ import annotations

import base64

import pytest

ADMIN = {"X-NSLLM-Admin-Key": "nsllm-admin-0123456789abcdef"}
PATH = "/admin/cache/records"


async def test_records_come_page_by_page(running):
    running.service.stored = {bytes([n]) * 32: bytes([n]) * 40 for n in range(1, 6)}
    seen, after = [], ""
    for _ in range(4):
        page = (await running.http.get(f"{PATH}?limit=2{after}", headers=ADMIN)).json()
        assert (page["records"], page["network"]) == (5, "0x" + "00" * 32)
        seen += [(row["record"], base64.b64decode(row["certified"])) for row in page["data"]]
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert seen == [(f"0x{bytes([n]).hex() * 32}", bytes([n]) * 40) for n in range(1, 6)]


async def test_records_are_brought_and_each_is_told_of(running):
    bodies = [base64.b64encode(bytes([7]) * 40).decode(), base64.b64encode(b"short").decode()]
    answer = await running.http.post(PATH, json={"records": bodies}, headers=ADMIN)
    assert answer.json()["data"] == [
        {"record": "0x" + "07" * 32, "outcome": "stored", "reason": ""},
        {"record": None, "outcome": "refused", "reason": "too short"},
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"records": []}, "records"),
        ({"records": ["AAAA"] * 65}, "records"),
        ({"records": ["AAAA", "é"]}, "records[1]"),
        ({"records": ["AAA"]}, "records[0]"),
        ({"records": "AAAA"}, "records"),
        ({}, "records"),
    ],
)
async def test_a_body_that_says_something_else_is_refused(running, body, param):
    answer = await running.http.post(PATH, json=body, headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("query", "param"), [("limit=0", "limit"), ("limit=65", "limit"), ("limit=x", "limit"), ("after=0x12", "after")]
)
async def test_a_query_that_says_something_else_is_refused(running, query, param):
    answer = await running.http.get(f"{PATH}?{query}", headers=ADMIN)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_nobody_else_may(running):
    assert (await running.http.get(PATH)).status_code == 401
    assert (await running.http.post(PATH, json={"records": ["AAAA"]})).status_code == 401
