"""`GET /v1/receipts/{id}`: the receipt of a completion, at the level that it has reached."""

from __future__ import annotations

import math
from functools import partial
from typing import Final, cast

from aiohttp import web

from nsllm.node.api.context import CONTEXT, Context
from nsllm.node.api.openai_errors import ApiError, bad_request
from nsllm.node.api.reply import score_text
from nsllm.node.errors import NotFoundError
from nsllm.node.views import LEVELS, ReceiptLevel, ReceiptStatus

DEFAULT_WAIT_S: Final = 30.0


async def get_receipt(request: web.Request) -> web.Response:
    """200 with the receipt's canonical text, 202 while pending, 404 if there is none, with the reason.

    `?wait=LEVEL` holds the answer back until the level is reached, or `timeout_s` has passed; whatever level there is
    then is answered.
    """
    context = request.app[CONTEXT]
    completion_id = request.match_info["id"]
    if len(completion_id) > 128:
        raise NotFoundError(f"no completion id is {len(completion_id)} characters long", param="id")
    wait, timeout_s = _wait(request, context)
    if wait is None:
        status = await context.bridge.call(partial(context.service.receipt, completion_id))
    else:
        status = await context.bridge.call(partial(context.service.receipt_at, completion_id, wait, timeout_s))
    headers = _headers(status)
    if status.state == "none":
        raise ApiError(404, f"there is no receipt: {status.detail}", "no_receipt", param="id", headers=headers)
    if status.receipt_json is None:
        pending = {"id": completion_id, "object": "receipt.pending", "state": "pending", "detail": status.detail}
        return web.json_response(pending, status=202, headers={**headers, "Retry-After": "1"})
    return web.Response(body=status.receipt_json.encode(), headers=headers, content_type="application/json")


def _wait(request: web.Request, context: Context) -> tuple[ReceiptLevel | None, float]:
    wait = request.query.get("wait")
    if wait is not None and wait not in LEVELS[1:]:
        raise bad_request(f"'wait' is {wait[:32]!r}, use certified, logged or anchored", param="wait")
    longest = context.settings.receipt_wait_max_s
    text = request.query.get("timeout_s")
    try:
        timeout_s = min(DEFAULT_WAIT_S, longest) if text is None else float(text)
    except ValueError:
        timeout_s = math.nan
    if not 0 <= timeout_s <= longest:  # also refuses NaN
        raise bad_request(f"'timeout_s' must be from 0 to {longest:g} seconds", param="timeout_s")
    return cast("ReceiptLevel | None", wait), timeout_s


def _headers(status: ReceiptStatus) -> dict[str, str]:
    headers = {"x-nsllm-completion-id": status.completion_id, "x-nsllm-receipt": status.state}
    if status.score_ppm is not None:
        headers["x-nsllm-score"] = score_text(status.score_ppm)
    if status.final:
        headers["x-nsllm-receipt-final"] = "true"
    if status.height is not None:
        headers["x-nsllm-height"] = str(status.height)
    if status.signers:
        headers["x-nsllm-signers"] = ",".join(status.signers)
    if status.anchor_tx is not None:
        headers["x-nsllm-anchor"] = status.anchor_tx
    if status.revoked_height is not None:
        headers["x-nsllm-revoked-height"] = str(status.revoked_height)
    return headers
