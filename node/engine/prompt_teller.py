"""What the tokens of a prompt are worth: each one's log-probability after those before it, as they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nsllm.node.engine.port import PromptToken
from nsllm.node.engine.sampler import Chooser
from nsllm.node.engine.spelling import Spelling

if TYPE_CHECKING:
    import torch


class PromptTeller:
    """Of one generation's prompt.

    Args:
        prompt: its tokens.
        top: alternatives to tell with each; 0: none.
        chooser: knows probabilities from logits, as answers' are told.
        spelling: of the model.
    """

    def __init__(self, prompt: Sequence[int], top: int, chooser: Chooser, spelling: Spelling) -> None:
        self._prompt = prompt
        self._top = top
        self._chooser = chooser
        self._spelling = spelling
        self._decoder = spelling.decoder()
        self._chars = 0
        """Of the prompt's text, before the token that is told next."""
        self._told = 0
        """Tokens that were told."""

    @property
    def left(self) -> bool:
        """Tokens are left to be told."""
        return self._told < len(self._prompt)

    def take(self, start: int, rows: torch.Tensor) -> tuple[PromptToken, ...]:
        """Tokens that can be told now; those that were told before are not told again.

        Args:
            start: tokens that were read before.
            rows: (tokens, vocabulary), the logits after each token that was read since.
        """
        found: list[PromptToken] = []
        if not self._told:  # nothing comes before the first
            found.append(self._spelled(self._prompt[0], None, 0, ()))
            self._told = 1
        end = min(start + len(rows) + 1, len(self._prompt))
        token_ids = self._prompt[self._told : end]
        # What stands at a place is predicted by the logits after the place before it.
        own = rows[self._told - 1 - start : max(self._told, end) - 1 - start]
        self._told = max(self._told, end)
        for token, standing in zip(token_ids, self._chooser.standings(own, token_ids, self._top), strict=True):
            found.append(self._spelled(token, standing.logprob, standing.rank, standing.top))
        return tuple(found)

    def _spelled(self, token: int, logprob: float | None, rank: int, top: Sequence[tuple[int, float]]) -> PromptToken:
        spelled = self._spelling.token_bytes
        at, self._chars = self._chars, self._chars + len(self._decoder.push(token))
        return PromptToken(
            token, spelled(token), at, logprob, rank, tuple((one, spelled(one), value) for one, value in top)
        )
