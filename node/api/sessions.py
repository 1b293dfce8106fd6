"""Sessions of the status page: what a browser may do after it has shown a key once.

The cookie is `HttpOnly` and `SameSite=Strict`; a POST that leans on it also needs the session's CSRF token.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

CSRF_HEADER: Final = "X-NSLLM-CSRF"
MAX_SESSIONS: Final = 64
"""The oldest goes when one more logs in."""


def cookie_name(port: int) -> str:
    """Browsers keep cookies by host, not by port: the name tells the peers of one machine apart."""
    return f"nsllm_session_{port}"


@dataclass(frozen=True, slots=True)
class Session:
    """What one browser may do."""

    csrf: str
    may_read: bool
    may_administer: bool

    def csrf_matches(self, sent: str | None) -> bool:
        """Constant-time comparison."""
        return sent is not None and hmac.compare_digest(self.csrf.encode(), sent.encode("utf-8", "surrogateescape"))


class Sessions:
    """Open sessions by cookie; forgotten when the peer stops."""

    def __init__(self) -> None:
        self._by_cookie: OrderedDict[str, Session] = OrderedDict()

    def open(self, *, may_read: bool, may_administer: bool) -> tuple[str, Session]:
        """A new session and its cookie."""
        cookie = secrets.token_urlsafe(32)
        session = Session(csrf=secrets.token_urlsafe(32), may_read=may_read, may_administer=may_administer)
        self._by_cookie[cookie] = session
        if len(self._by_cookie) > MAX_SESSIONS:
            self._by_cookie.popitem(last=False)
        return cookie, session

    def find(self, cookie: str | None) -> Session | None:
        """The session of a cookie that we gave out."""
        return None if cookie is None else self._by_cookie.get(cookie)
