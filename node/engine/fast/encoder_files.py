"""A BERT sentence encoder's folder: sizes, tensors by name, and texts as its token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from nsllm.node.engine.backend import given_tokens
from nsllm.node.engine.card import ENCODER_TOKENS
from nsllm.node.engine.port import Readable

MOST_CHARS: Final = 16_384
"""Characters of a text that the tokenizer looks at: 64 for each token that is read."""


def runs(config: dict[str, Any]) -> bool:
    """Whether a config.json describes what our encoders compute."""
    return (
        config.get("model_type") == "bert"
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
    )


class BertFiles:
    """What there is to compute with. Tensors are float32."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_bytes())
        self.layers: int = config["num_hidden_layers"]
        self.heads: int = config["num_attention_heads"]
        self.hidden: int = config["hidden_size"]
        self.inner: int = config["intermediate_size"]
        self.epsilon = float(config.get("layer_norm_eps", 1e-12))
        self.most_tokens = min(ENCODER_TOKENS, int(config["max_position_embeddings"]))
        stored = load_file(folder / "model.safetensors")
        self._stored: dict[str, torch.Tensor] = {
            name.removeprefix("bert."): tensor.float() for name, tensor in stored.items()
        }

    def words(self) -> torch.Tensor:
        """(vocabulary, hidden)."""
        return self._stored["embeddings.word_embeddings.weight"]

    def positions(self) -> torch.Tensor:
        """(positions, hidden), of texts that stand alone."""
        types = self._stored["embeddings.token_type_embeddings.weight"]
        return self._stored["embeddings.position_embeddings.weight"] + types[0]

    def norm(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias."""
        return self._stored[name + ".weight"], self._stored[name + ".bias"]

    def linear(self, *names: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of one layer for several that read the same."""
        weight, bias = (torch.cat([self._stored[name + kind] for name in names]) for kind in (".weight", ".bias"))
        return weight, bias


class BertTokens:
    """Texts as token ids."""

    def __init__(self, folder: Path, *, vocabulary: int, most_tokens: int) -> None:
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._vocabulary = vocabulary
        self._most_tokens = most_tokens

    def read(self, texts: Sequence[Readable], most_tokens: int | None = None) -> list[list[int]]:
        """Token ids of each text."""
        most = min(self._most_tokens, most_tokens or self._most_tokens)
        self._tokenizer.enable_truncation(most)
        return [
            self._tokenizer.encode(str(text[:MOST_CHARS])).ids
            if isinstance(text, str)
            else given_tokens(text, self._vocabulary)[:most]
            for text in texts
        ]
