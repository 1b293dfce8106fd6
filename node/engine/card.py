"""What a model folder says of itself: name, digest, dtype, context, sampling defaults. Reads files only, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from nsllm.node.engine.choice import Choice, kin_digests, running_digest
from nsllm.node.engine.models import model_digest, model_dtype, read_config, sees
from nsllm.node.engine.port import ModelInfo
from nsllm.node.errors import ConfigError
from nsllm.record import EMBEDDING_DIMENSIONS, Sampling

MICRO: Final = 1_000_000
ENCODER_TOKENS: Final = 256
"""Tokens that an encoder reads of a text: MiniLM's model card truncates there."""


def read_text_info(folder: Path, choice: Choice) -> ModelInfo:
    """Of a causal or vision-language model that runs as chosen.

    Raises:
        ModelMissingError: no usable model there.
        ConfigError: the configuration does not say how long a context may be.
    """
    config = read_config(folder)
    eyes = sees(config)
    text = config.get("text_config") if eyes else config
    own = text if isinstance(text, dict) else {}
    context = own.get("max_position_embeddings") or own.get("n_positions")
    if not isinstance(context, int) or context < 2:
        raise ConfigError(f"{folder}/config.json: max_position_embeddings is {context!r}, expected a number of tokens")
    return ModelInfo(
        name=folder.name,
        digest=running_digest(folder, choice),
        kin=kin_digests(folder, choice),
        dtype=choice.dtype,
        context_tokens=context,
        defaults=_defaults(_generation_config(folder)),
        sees=eyes,
    )


def read_encoder_info(folder: Path) -> ModelInfo:
    """Of a sentence encoder.

    Raises:
        ModelMissingError: no usable model there.
        ConfigError: its vectors are not of the length that records hold.
    """
    config = read_config(folder)
    if config.get("hidden_size") != EMBEDDING_DIMENSIONS:
        raise ConfigError(
            f"encoder {folder} makes vectors of {config.get('hidden_size')!r} numbers, records hold "
            f"{EMBEDDING_DIMENSIONS}",
            hint="choose an encoder with hidden_size 384, such as the default",
        )
    return ModelInfo(
        name=folder.name,
        digest=model_digest(folder),
        dtype=model_dtype(config),
        context_tokens=min(ENCODER_TOKENS, int(config.get("max_position_embeddings") or ENCODER_TOKENS)),
        defaults=Sampling(),
    )


def _generation_config(folder: Path) -> Mapping[str, Any]:
    try:
        value = json.loads((folder / "generation_config.json").read_bytes())
    except (OSError, ValueError):  # a model card need not have one
        return {}
    return value if isinstance(value, dict) else {}


def _defaults(card: Mapping[str, Any]) -> Sampling:
    """The card's parameters; what it leaves out is off, as vLLM reads generation_config.json."""

    def micro(name: str) -> int:
        value = card.get(name)
        return round(value * MICRO) if isinstance(value, int | float) else MICRO

    top_k = card.get("top_k")
    return Sampling(
        min_p_micro=0,
        presence_penalty_micro=0,
        frequency_penalty_micro=0,
        min_tokens=0,
        temperature_micro=micro("temperature"),
        top_p_micro=micro("top_p"),
        top_k=top_k if isinstance(top_k, int) else 0,
        repetition_penalty_micro=micro("repetition_penalty"),
    )
