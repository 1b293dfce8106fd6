"""What a worker says of a job that failed: where and how, never with what text."""

from __future__ import annotations

import traceback

from nsllm.node.engine.protocol import Refused


def failed(job: int, error: BaseException) -> Refused:
    """The job ends with this; the error's own words may hold a prompt, so they stay here."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {frames[-1].name}, {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return Refused(job=job, kind="failed", message=f"{type(error).__name__}{place}")
