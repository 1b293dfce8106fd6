"""Killed at every boundary (kill -9), a validator never signs a second, different commit for a number or a record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nsllm.consensus.batch import unpack_rows
from nsllm.consensus.observation import unpack_subjects
from nsllm.consensus.observation_message import Commit, Reveal, decode_observation
from nsllm.governance.defaults import default_policy
from nsllm.ids import Digest

LIVES_OF = Path(__file__).parents[1] / "lives.py"
SCRIPT = Path(__file__).with_name("dying_committer.py")
LIVES = 6
DIMENSIONS = len(default_policy(Digest(bytes(32)), Digest(bytes(32))).rubric.dimensions)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("moment", ["batch_signed", "in_transaction", "batch_written", "batch_sent", "rows_opened"])
def test_killed_at(moment: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, LIVES_OF, SCRIPT, tmp_path, moment, str(LIVES)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 3
    bodies = [decode_observation(bytes.fromhex(line)) for line in (tmp_path / "tap").read_text().split()]
    commits = {body.signed for body in bodies if isinstance(body, Commit)}
    numbers = [signed.commit.number for signed in commits]
    assert len(numbers) == len(set(numbers)), "one number, two commits"
    records = [record for s in commits for record in (*s.commit.record_digests, *s.commit.abstained)]
    assert len(records) == len(set(records)) == 12, "one record in two commits, or one that was forgotten"
    shown: dict[bytes, set[tuple[int, ...]]] = {}
    for body in bodies:
        for reveal in body.reveals if isinstance(body, Reveal) else ():
            rows = unpack_rows(reveal.rows, DIMENSIONS)
            for subject, row in zip(unpack_subjects(reveal.subjects), rows, strict=True):
                shown.setdefault(subject.record, set()).add(row.ppm)
    assert shown, "nothing was opened"
    assert all(len(different) == 1 for different in shown.values())
