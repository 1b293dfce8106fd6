"""`/admin/models`: loading and unloading take the admin key, and errors keep their status."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from nsllm.node.engine.port import LoadedModel
from nsllm.node.errors import EngineError, MemoryBudgetError, UnknownModelError
from nsllm.node.views import ModelShelf

ADMIN = {"X-NSLLM-Admin-Key": "nsllm-admin-0123456789abcdef"}
PATH = "/admin/models"


@dataclass
class Shelf:
    """What a peer does with its models."""

    rows: list[LoadedModel]
    asked: list[tuple[str, bool]] = field(default_factory=list)
    failure: Exception | None = None

    def loaded(self) -> ModelShelf:
        return ModelShelf(tuple(self.rows), 2000)

    async def load_model(self, name: str, *, default: bool) -> LoadedModel:
        self.asked.append((name, default))
        if self.failure is not None:
            raise self.failure
        return self.rows[0]

    async def unload_model(self, name: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.asked.append((name, False))


@pytest.fixture
async def shelf(running):
    first, _encoder = running.service.models()
    made = Shelf([LoadedModel(first, "ready", 1, 2, memory_mb=900, removable=False)])
    running.service.loaded = made.loaded
    running.service.load_model = made.load_model
    running.service.unload_model = made.unload_model
    return made


ROW = {
    "id": "smollm2-135m-instruct",
    "object": "model",
    "default": True,
    "digest": "0x" + "11" * 32,
    "dtype": "bfloat16",
    "state": "ready",
    "active": 1,
    "queued": 2,
    "memory_mb": 900,
    "removable": False,
}


async def test_what_is_loaded_is_listed_with_the_budget(running, shelf):
    answer = await running.http.get(PATH, headers=ADMIN)
    assert answer.json() == {"object": "list", "budget_mb": 2000, "data": [ROW]}


async def test_a_model_is_loaded_and_unloaded_by_name(running, shelf):
    answer = await running.http.post(PATH, json={"model": "smollm2-135m-instruct", "default": True}, headers=ADMIN)
    assert (answer.status_code, answer.json()) == (200, ROW)
    await running.http.post(PATH, json={"model": "x"}, headers=ADMIN)
    answer = await running.http.delete(f"{PATH}/a%20b", headers=ADMIN)
    assert answer.json() == {"id": "a b", "object": "model", "deleted": True}
    assert shelf.asked == [("smollm2-135m-instruct", True), ("x", False), ("a b", False)]


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (MemoryBudgetError("needs 9 MB, 1 MB left"), 507, "not_enough_memory"),
        (UnknownModelError("no such model"), 404, "model_not_found"),
        (EngineError("it does not start"), 503, "engine_failed"),
    ],
)
async def test_failures_keep_their_status(running, shelf, failure, status, code):
    shelf.failure = failure
    for answer in (
        await running.http.post(PATH, json={"model": "x"}, headers=ADMIN),
        await running.http.delete(f"{PATH}/x", headers=ADMIN),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("headers", [{}, {"X-NSLLM-Admin-Key": "wrong"}, {"Authorization": "Bearer wrong"}])
async def test_without_the_admin_key_nothing_is_changed(running, shelf, headers):
    answers = [
        await running.http.get(PATH, headers=headers),
        await running.http.post(PATH, json={"model": "x"}, headers=headers),
        await running.http.delete(f"{PATH}/x", headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [401, 401, 401]
    assert shelf.asked == []


@pytest.mark.parametrize("body", [{}, {"model": 3}, {"model": "x", "force": True}])
async def test_a_body_that_says_something_else_is_refused(running, shelf, body):
    answer = await running.http.post(PATH, json=body, headers=ADMIN)
    assert answer.status_code == 400
    assert shelf.asked == []
