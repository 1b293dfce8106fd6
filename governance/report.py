"""What a verified receipt shows: of each field whether it is proved, attested or claimed, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nsllm.governance.receipt import Level

Standing = Literal["proved", "attested", "claimed"]
"""`proved`: cryptography; `attested`: a quorum signed it; `claimed`: one signer's word."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One field of the receipt."""

    field: str
    value: str
    """For people; content as length and digest."""
    standing: Standing
    why: str


@dataclass(frozen=True, slots=True)
class Report:
    """A receipt that holds."""

    level: Level
    record: str
    """Digest, 0x…"""
    height: int
    epoch: int
    score_ppm: int
    """Hybrid score under the policy of that epoch."""
    validators: int
    signers: int
    steps: tuple[str, ...]
    """Steps that passed, in order."""
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    """What a reader must know about the trust behind it."""
    revoked_height: int | None = None
    """At which validators took the record back, as the receipt proves; None: not when the receipt was written."""

    @property
    def verdict(self) -> str:
        """One line: what holds, and whether it still counts."""
        holds = f"receipt holds: {self.level} at height {self.height}"
        return holds if self.revoked_height is None else f"{holds}, revoked at height {self.revoked_height}"

    def lines(self) -> list[str]:
        """The report for people, a line each."""
        head = f"{self.verdict}, {self.signers} of {self.validators} validators"
        width = max(len(finding.field) for finding in self.findings)
        body = [
            f"  {finding.standing:<8}  {finding.field:<{width}}  {finding.value}  ({finding.why})"
            for finding in self.findings
        ]
        return [head, f"  steps: {', '.join(self.steps)}", *body, *(f"  note: {note}" for note in self.notes)]

    def to_dict(self) -> dict[str, object]:
        """The report as plain values, for `--json`."""
        return {
            "ok": True,
            "level": self.level,
            "record": self.record,
            "height": self.height,
            "epoch": self.epoch,
            "score_ppm": self.score_ppm,
            "validators": self.validators,
            "signers": self.signers,
            "steps": list(self.steps),
            "fields": {
                finding.field: {"value": finding.value, "standing": finding.standing, "why": finding.why}
                for finding in self.findings
            },
            "notes": list(self.notes),
            "revoked_height": self.revoked_height,
        }
