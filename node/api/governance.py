"""`/admin/governance`: motions of the validators, made and approved with the admin key."""

from __future__ import annotations

from functools import partial

from aiohttp import web
from msgspec import Struct

from nsllm.ids import hex0x
from nsllm.node.api.context import CONTEXT
from nsllm.node.api.requests import decode, read_body
from nsllm.node.service import Wish


class MotionBody(Struct, forbid_unknown_fields=True):
    """Body of `POST /admin/governance`."""

    kind: str
    address: str | None = None
    peer_id: str | None = None
    roles: tuple[str, ...] = ()
    policy: str | None = None
    record: str | None = None


class ApprovalBody(Struct, forbid_unknown_fields=True):
    """Body of `POST /admin/governance/approve`."""

    motion: str


async def show(request: web.Request) -> web.Response:
    """Motions that wait, those decided lately, members and the policy in force."""
    context = request.app[CONTEXT]
    return web.json_response(await context.bridge.call(context.service.governance))


async def propose(request: web.Request) -> web.Response:
    """Make a motion and approve it."""
    context = request.app[CONTEXT]
    body = decode(await read_body(request), MotionBody)
    wish = Wish(
        kind=body.kind,
        address=body.address,
        peer_id=body.peer_id,
        roles=body.roles,
        policy=body.policy,
        record=body.record,
    )
    digest = await context.bridge.call(partial(context.service.propose_motion, wish))
    return web.json_response({"object": "motion", "motion": hex0x(digest)})


async def approve(request: web.Request) -> web.Response:
    """Approve a waiting motion."""
    context = request.app[CONTEXT]
    body = decode(await read_body(request), ApprovalBody)
    await context.bridge.call(partial(context.service.approve_motion, body.motion))
    return web.json_response({"object": "motion", "motion": body.motion})
