"""The hooks of a plugin. A plugin is a module or object with functions marked by `pluggy.HookimplMarker("nsllm")`.

It is found by an entry point of group `nsllm.plugins` whose name is the plugin's name, runs in a process of its own
once the operator enables that name, and needs nothing of this package but the marker: every value is a plain int, str,
bytes, None, list or dict. A hook may take fewer arguments than listed here, by name. One call at a time; a call that
outlasts its time limit, raises, or returns another shape is a failure, and after three failures in a row the plugin is
disabled.
"""

# mypy: disable-error-code="empty-body"
from __future__ import annotations

from typing import Any, Final

import pluggy

PROJECT: Final = "nsllm"
ENTRY_POINT_GROUP: Final = "nsllm.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class HookSpecs:
    """What a plugin can implement; every hook is optional but `nsllm_info`."""

    @hookspec(firstresult=True)
    def nsllm_info(self) -> dict[str, str]:
        """Who the plugin is.

        Returns:
            `{"name", "version", "description"}`; name as in the entry point, version at most 64 characters,
            description at most 200.
        """

    @hookspec(firstresult=True)
    def nsllm_validate(
        self, stage: str, text: str, question: str, embedding: bytes, features: dict[str, Any] | None
    ) -> list[dict[str, Any]]:
        """Measure a text: what a user asks, or what the model answers.

        Args:
            stage: `input` or `output`.
            text: what to judge, at most 100,000 characters.
            question: the user's last turn; equal to `text` at the input stage.
            embedding: of `text`: 384 signed bytes, unit vector times 127; all zeros for private requests of a
                peer whose `judge_private` is `wording`.
            features: None at the input stage and for private answers; else `tokens` (int), `logprob_micro` (mean
                log-probability a token, millionths of a nat), `gain_micro` (over an unconditioned prompt),
                `relevance_cosine_ppm` (question and answer), `support_cosine_ppm` (answer's sentences and the
                evidence's, or None), `embedding` (of the answer).

        Returns:
            At most 16 measures `{"name", "kind", "ppm", "limit_ppm", "note"}`. `name`: lower case, letters, digits, `-`
            and `_`; shown as `plugin.name`. `kind`: `safety` (higher is worse; at or above `limit_ppm` the text is
            withheld) or `quality` (below `limit_ppm` the answer is not published). `ppm`: 0 to 1,000,000. `limit_ppm`:
            the same, or None or absent to report only. `note`: at most 200 characters for people, never a part of the
            text; may be absent.
        """

    @hookspec(firstresult=True)
    def nsllm_score(self, question: str, answer: str, features: dict[str, Any]) -> dict[str, int]:
        """Score an answer in dimensions of the plugin's own.

        Args:
            question: the user's last turn.
            answer: what the model said.
            features: as for `nsllm_validate`, never None.

        Returns:
            At most 16 dimensions, name to ppm (0 to 1,000,000, higher is better). One counts in the hybrid score if the
            policy's rubric names it, as `plugin.dimension`. Same input, same number: validators must agree.
        """
