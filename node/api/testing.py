"""Drives the status page in a real browser, for tests: ask a question and see what a person would see."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM_FLAGS: Final = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
"""For headless Chromium as root in a container; the page itself needs none of them."""
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""As `scripts/setup.sh` looks for one."""


def find_browser() -> str:
    """Path of the Chromium to drive.

    Raises:
        FileNotFoundError: there is none; which names were looked for.
    """
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise FileNotFoundError(f"no browser on PATH: {', '.join(BROWSERS)}; run scripts/setup.sh .venv test")
    return found


@dataclass(frozen=True, slots=True)
class Seen:
    """What the page showed of one answer."""

    answer: str
    source: str
    """Such as `From the cache`, with the line below it."""
    score: str
    """Such as `0.913`."""
    certificate: str
    """Such as `Certificate at height 43`, with its signers."""
    receipt_url: str


def ask_and_wait(page: Page, url: str, question: str, *, timeout_s: float = 60.0) -> Seen:
    """Open the page at `url`, ask `question` in public, and wait for answer, score and certificate.

    Raises:
        playwright.sync_api.TimeoutError: one of them did not appear within `timeout_s`.
    """
    page.set_default_timeout(timeout_s * 1000)
    page.goto(url)
    page.wait_for_selector("#live.on")
    page.get_by_label("Visibility").select_option("public")
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_selector('[data-step="source"][data-state="done"]')
    page.wait_for_selector('[data-step="score"][data-state="done"]')
    page.wait_for_selector('[data-step="certificate"][data-state="done"]')
    return Seen(
        answer=page.inner_text("#answer"),
        source=page.inner_text('[data-step="source"]'),
        score=page.inner_text('[data-step="score"] .figure'),
        certificate=page.inner_text('[data-step="certificate"]'),
        receipt_url=page.get_attribute("#download", "href") or "",
    )
