"""A BERT sentence encoder (MiniLM), in torch, straight from its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn.functional import embedding, gelu, layer_norm, linear, normalize, scaled_dot_product_attention

from nsllm.node.engine.backend import given_tokens
from nsllm.node.engine.card import ENCODER_TOKENS
from nsllm.node.engine.port import Readable

MOST_CHARS: Final = 16_384
"""Characters of a text that the tokenizer looks at: 64 for each token that is read."""


def runs(config: dict[str, Any]) -> bool:
    """Whether a config.json describes what `BertEncoder` computes."""
    return (
        config.get("model_type") == "bert"
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
    )


class BertEncoder:
    """Mean over the tokens, L2 norm (model card of all-MiniLM-L6-v2)."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_bytes())
        self._layers: int = config["num_hidden_layers"]
        self._heads: int = config["num_attention_heads"]
        self._epsilon = float(config.get("layer_norm_eps", 1e-12))
        weights = load_file(folder / "model.safetensors")
        self._weights = {name.removeprefix("bert."): tensor.float() for name, tensor in weights.items()}
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._most_tokens = min(ENCODER_TOKENS, int(config["max_position_embeddings"]))
        self._vocabulary = len(self._weights["embeddings.word_embeddings.weight"])
        self._tokenizer.no_padding()

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

    @torch.inference_mode()
    def vectors(self, rows: list[list[int]]) -> torch.Tensor:
        """Unit vectors (rows, dimensions) of what is read at once."""
        width = max(1, *(len(row) for row in rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]
        x = self._embed_tokens(ids)
        for layer in range(self._layers):
            x = self._layer(x, mask[:, None, None], f"encoder.layer.{layer}.")
        share = mask.unsqueeze(-1).float()
        return normalize((x * share).sum(1) / share.sum(1).clamp(min=1), dim=1)

    def _embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        prefix = "embeddings."
        x = embedding(ids, self._weights[prefix + "word_embeddings.weight"])
        x = x + self._weights[prefix + "position_embeddings.weight"][: ids.shape[1]]
        x = x + self._weights[prefix + "token_type_embeddings.weight"][0]
        return self._norm(x, prefix + "LayerNorm")

    def _layer(self, x: torch.Tensor, mask: torch.Tensor, prefix: str) -> torch.Tensor:
        batch, tokens, hidden = x.shape
        q, k, v = (
            self._linear(x, f"{prefix}attention.self.{name}").view(batch, tokens, self._heads, -1).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(batch, tokens, hidden)
        x = self._norm(
            self._linear(mixed, prefix + "attention.output.dense") + x, prefix + "attention.output.LayerNorm"
        )
        inner = gelu(self._linear(x, prefix + "intermediate.dense"))
        return self._norm(self._linear(inner, prefix + "output.dense") + x, prefix + "output.LayerNorm")

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return linear(x, self._weights[name + ".weight"], self._weights[name + ".bias"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight = self._weights[name + ".weight"]
        return layer_norm(x, weight.shape, weight, self._weights[name + ".bias"], self._epsilon)
