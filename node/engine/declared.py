"""What a record may declare of its sampling: what the request sets, and for the rest what the model's card says.

A declared parameter explains tokens: with penalties, biases or a temperature of one's choice, fitted to a text, a model
can be said to have given nearly any text. So nothing of it is the generator's to choose but the seed, which it must
name. The card is pinned: it is one of the files behind the model's digest.
"""

from __future__ import annotations

from typing import Final

from nsllm.record import Sampling

MICRO: Final = 1_000_000
MOST_TEMPERATURE: Final = 2
MOST_PENALTY: Final = 2
"""Of presence and frequency, either way, and of repetition."""
MOST_BIAS: Final = 100
"""Either way. These are the ranges of OpenAI's API, and of ours."""


def is_possible(asked: Sampling, declared: Sampling, card: Sampling) -> bool:
    """Whether an honest generator declares this for a request that asks so.

    Args:
        asked: the request's, None where it leaves a parameter open.
        declared: the record's.
        card: what the claimed model's card says of each parameter; it names no seed and no lists.
    """
    if not _in_range(asked) or declared.seed is None:
        return False
    for name in Sampling.__struct_fields__:
        wanted = getattr(asked, name)
        if name == "max_tokens" or (name == "seed" and wanted is None):
            continue
        if getattr(declared, name) != (getattr(card, name) if wanted is None else wanted):
            return False
    # An answer may be shorter than asked.
    return asked.max_tokens is None or (declared.max_tokens is not None and declared.max_tokens <= asked.max_tokens)


def _in_range(asked: Sampling) -> bool:
    """Whether the API would take it."""
    penalties = (asked.presence_penalty_micro, asked.frequency_penalty_micro)
    return (
        (asked.temperature_micro or 0) <= MOST_TEMPERATURE * MICRO
        and (asked.top_p_micro is None or 0 < asked.top_p_micro <= MICRO)
        and (asked.min_p_micro or 0) <= MICRO
        and (asked.repetition_penalty_micro is None or 0 < asked.repetition_penalty_micro <= MOST_PENALTY * MICRO)
        and all(abs(penalty or 0) <= MOST_PENALTY * MICRO for penalty in penalties)
        and all(abs(bias) <= MOST_BIAS * MICRO for _, bias in asked.logit_bias)
    )
