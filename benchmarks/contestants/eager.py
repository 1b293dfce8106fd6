"""transformers, asked well: batched and cached, eager; and `generate_batch`, its continuous batching.

python -m benchmarks.contestants.eager --text DIR --threads N
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.contestants.stage import losses_of, serve

BLOCKS = 64
PAGE_TOKENS = 256
"""Of `generate_batch`'s cache: room for 64 sequences."""


class Eager:
    """`AutoModelForCausalLM` in the dtype that is stored (bfloat16)."""

    def __init__(self, text: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(text, dtype="auto", local_files_only=True).eval()
        self._rows = torch.empty(0)
        self._cache: Any = None
        """Of `_rows`, and of tokens that were written after them."""

    def about(self) -> dict[str, object]:
        """Versions and dtype."""
        return {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "dtype": str(self._model.dtype).removeprefix("torch."),
        }

    def settings_of(self, task: str, *, thorough: bool) -> list[str]:
        """Nothing to choose."""
        del task, thorough
        return [""]

    @torch.inference_mode()
    def decode(self, texts: Sequence[Sequence[int]], settings: str) -> Callable[[], None]:
        """One token in each stream, the same for every step."""
        del settings
        rows = torch.tensor(texts)
        if self._cache is None or not torch.equal(rows, self._rows):
            self._rows = rows
            self._cache = self._model(input_ids=rows, use_cache=True, logits_to_keep=1).past_key_values
        cache = self._cache
        written = cache.get_seq_length() - rows.shape[1]
        if written:
            cache.crop(-written)
        last = rows[:, 5:6].clone()
        return lambda: self._step(last, cache)

    def prefill(self, text: Sequence[int], settings: str) -> Callable[[], None]:
        """All at once."""
        del settings
        rows = torch.tensor([text])
        return lambda: self._step(rows, None)

    def generate(self, texts: Sequence[Sequence[int]], tokens: int, settings: str) -> None:
        """By `generate_batch`."""
        del settings
        greedy = GenerationConfig(do_sample=False, max_new_tokens=tokens, eos_token_id=-1, pad_token_id=0)
        cache = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS, num_blocks=BLOCKS, max_batch_tokens=len(texts) * len(texts[0])
        )
        inputs = [list(text) for text in texts]
        found = self._model.generate_batch(inputs, generation_config=greedy, continuous_batching_config=cache)
        written = sum(len(output.generated_tokens) for output in found.values())
        assert written == tokens * len(texts), f"generate_batch wrote {written} tokens"

    @torch.inference_mode()
    def losses(self, windows: Sequence[Sequence[int]], read_at_once: int, settings: str) -> np.ndarray:
        """Each window in one pass: bfloat16 as everybody computes it, the reference."""
        del read_at_once, settings
        found = np.empty((len(windows), len(windows[0]) - 1))
        for row, window in zip(found, windows, strict=True):
            logits = self._model(input_ids=torch.tensor([window[:-1]])).logits[0]
            row[:] = losses_of(logits.float().numpy(), window[1:])
        return found

    @torch.inference_mode()
    def _step(self, rows: torch.Tensor, cache: object) -> None:
        self._model(input_ids=rows, past_key_values=cache, use_cache=True, logits_to_keep=1)


def main() -> None:
    """Load the model, and do what standard input says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    serve(Eager(options.text))


if __name__ == "__main__":
    main()
