"""An example plugin: a validation layer that withholds shouting, and a scorer of calmness.

    pip install examples/plugin_shouting

Then enable it by its name, `shouting`, in the peer's configuration. It needs pluggy only, never nsllm itself.
"""

from __future__ import annotations

import pluggy

hookimpl = pluggy.HookimplMarker("nsllm")

LIMIT_PPM = 700_000
SHORTEST_SHOUT = 12
"""Letters below which capitals are an acronym rather than a shout."""


def shouting_ppm(text: str) -> int:
    """Share of capitals among a text's letters, in parts per million."""
    letters = [char for char in text if char.isalpha()]
    if len(letters) < SHORTEST_SHOUT:
        return 0
    return sum(char.isupper() for char in letters) * 1_000_000 // len(letters)


@hookimpl
def nsllm_info() -> dict[str, str]:
    """Who this plugin is; the name is the entry point's."""
    return {"name": "shouting", "version": "0.1.0", "description": "withholds texts that are mostly capitals"}


@hookimpl
def nsllm_validate(text: str) -> list[dict[str, object]]:
    """One measure, shown as `shouting.capitals`; at 70 % capitals the text is withheld."""
    return [
        {
            "name": "capitals",
            "kind": "safety",
            "ppm": shouting_ppm(text),
            "limit_ppm": LIMIT_PPM,
            "note": "share of capital letters",
        }
    ]


@hookimpl
def nsllm_score(answer: str) -> dict[str, int]:
    """One dimension, `shouting.calmness`, for rubrics that name it."""
    return {"calmness": 1_000_000 - shouting_ppm(answer)}
