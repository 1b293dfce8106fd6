"""llama.cpp through its C interface, one model file a process; runs in the environment of `make bench-setup`.

    python -m benchmarks.contestants.llamacpp --gguf FILE --threads N
    python -m benchmarks.contestants.llamacpp --gguf FILE --quantize FORMAT --into FILE

Settings that are tried: flash attention, one cache for all sequences or one each, and how many tokens of a prompt a
pass of the model takes (`n_ubatch`).
"""

from __future__ import annotations

import argparse
import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import llama_cpp
import numpy as np

from benchmarks.contestants.stage import serve

FORMATS = {
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "BF16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
}
SEQUENCE_TOKENS = 256
"""Room of one stream."""
MOST_STREAMS = 64
PASS_TOKENS = 512
WINDOWS_AT_ONCE = 40


class Context:
    """A context of the model: its cache, and batches that go through it."""

    def __init__(self, model: object, threads: int, settings: str, *, streams: int, tokens: int) -> None:
        chosen = set(settings.split())
        wanted = llama_cpp.llama_context_default_params()
        wanted.n_seq_max = streams
        wanted.n_ctx = streams * tokens
        wanted.n_batch = PASS_TOKENS
        wanted.n_ubatch = next((int(name[2:]) for name in chosen if name.startswith("ub")), PASS_TOKENS)
        wanted.n_threads = wanted.n_threads_batch = threads
        wanted.flash_attn_type = (
            llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if "fa" in chosen else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        wanted.kv_unified = "unified" in chosen
        self._pointer = llama_cpp.llama_init_from_model(model, wanted)
        assert self._pointer, f"no context for {settings!r}"
        self._memory = llama_cpp.llama_get_memory(self._pointer)
        self._batch = llama_cpp.llama_batch_init(PASS_TOKENS, 0, 1)
        vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._shape = (PASS_TOKENS, vocabulary)

    def put(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """Fill the batch with (token, position, sequence, logits wanted)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted

    def run(self) -> None:
        """Pass the batch through the model."""
        status = llama_cpp.llama_decode(self._pointer, self._batch)
        assert status == 0, f"llama_decode said {status}"

    def advance(self) -> None:
        """The same batch, one position on."""
        positions = self._batch.pos
        for i in range(self._batch.n_tokens):
            positions[i] += 1

    def read(self, text: Sequence[int], sequence: int = 0) -> None:
        """A whole text into one sequence, logits after its last token."""
        for start in range(0, len(text), PASS_TOKENS):
            part = text[start : start + PASS_TOKENS]
            ends = [start + i == len(text) - 1 for i in range(len(part))]
            self.put([(token, start + i, sequence, ends[i]) for i, token in enumerate(part)])
            self.run()

    def read_all(self, texts: Sequence[Sequence[int]], *, shared: bool) -> None:
        """A text into each sequence; where each has a cache of its own, copies of the first: steps cost the same."""
        for sequence, text in enumerate(texts[: 1 if shared else None]):
            self.read(text, sequence)
        for sequence in range(1, len(texts) if shared else 1):
            llama_cpp.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)

    def forget(self, sequence: int, start: int) -> None:
        """Drop what a sequence has from position `start` on."""
        assert llama_cpp.llama_memory_seq_rm(self._memory, sequence, start, -1)

    def logits(self, count: int) -> np.ndarray:
        """(count, vocabulary) of the last pass; the next one writes over them."""
        first = llama_cpp.llama_get_logits(self._pointer)
        return np.ctypeslib.as_array(first, shape=(count, self._shape[1]))

    def clear(self) -> None:
        """Forget every sequence."""
        llama_cpp.llama_memory_clear(self._memory, False)  # noqa: FBT003 - the binding's signature

    def close(self) -> None:
        """Give the memory back."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._pointer)


class LlamaCpp:
    """One model file."""

    def __init__(self, gguf: Path, threads: int) -> None:
        quiet()
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(gguf).encode(), llama_cpp.llama_model_default_params())
        assert self._model, f"cannot load {gguf}"
        self._threads = threads
        self._context: Context | None = None
        self._wanted = ("", 0, 0)
        """Settings, streams and tokens a stream of the context."""

    def about(self) -> dict[str, object]:
        """Versions, and what the build found on this machine."""
        return {
            "llama-cpp-python": llama_cpp.__version__,
            "system": llama_cpp.llama_print_system_info().decode().strip(),
        }

    def settings_of(self, task: str, *, thorough: bool) -> list[str]:
        """See the module."""
        if task == "prefill":
            every = [f"{attention} ub{size}".strip() for attention in ("fa", "") for size in (512, 256, 128)]
            return every if thorough else ["fa ub512"]
        if task == "perplexity":
            return ["fa"]
        return ["fa", "", "fa unified", "unified"] if thorough else ["fa"]

    def decode(self, texts: Sequence[Sequence[int]], settings: str) -> Callable[[], None]:
        """One token in each stream, the same for every step; positions go on."""
        wanted = (settings, len(texts), SEQUENCE_TOKENS)
        if self._context is not None and self._wanted == wanted:
            context = self._context
            for sequence, text in enumerate(texts):
                context.forget(sequence, len(text))
        else:
            context = self._open(*wanted)
            context.read_all(texts, shared="unified" not in settings.split())
        context.put([(text[5], len(text) - 1, sequence, True) for sequence, text in enumerate(texts)])

        def step() -> None:
            context.advance()
            context.run()

        return step

    def prefill(self, text: Sequence[int], settings: str) -> Callable[[], None]:
        """Into an empty cache."""
        context = self._open(settings, streams=1, tokens=2 * PASS_TOKENS)
        return lambda: context.read(text)

    def losses(self, windows: Sequence[Sequence[int]], read_at_once: int, settings: str) -> np.ndarray:
        """See `Contestant`."""
        from benchmarks.contestants.stage import losses_of

        found = np.empty((len(windows), len(windows[0]) - 1))
        for start in range(0, len(windows), WINDOWS_AT_ONCE):
            part = windows[start : start + WINDOWS_AT_ONCE]
            rows = found[start : start + WINDOWS_AT_ONCE]
            context = self._open(settings, streams=len(part), tokens=len(windows[0]))
            for number, window in enumerate(part):
                context.put([(token, i, number, True) for i, token in enumerate(window[:read_at_once])])
                context.run()
                rows[number, :read_at_once] = losses_of(context.logits(read_at_once), window[1 : read_at_once + 1])
            for i in range(read_at_once, len(windows[0]) - 1):
                context.put([(window[i], i, number, True) for number, window in enumerate(part)])
                context.run()
                rows[:, i] = losses_of(context.logits(len(part)), [window[i + 1] for window in part])
        return found

    def _open(self, settings: str, streams: int, tokens: int) -> Context:
        """The one context that there is at a time, empty; made anew where another is wanted."""
        wanted = (settings, streams, tokens)
        if self._context is not None and self._wanted == wanted:
            self._context.clear()
            return self._context
        if self._context is not None:
            self._context.close()
        self._wanted = wanted
        self._context = Context(self._model, self._threads, settings, streams=streams, tokens=tokens)
        return self._context


@llama_cpp.llama_log_callback
def _ignore(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
    """Nothing."""


def quiet() -> None:
    """Loading a model prints two hundred lines otherwise."""
    llama_cpp.llama_log_set(_ignore, ctypes.c_void_p(0))


def quantize(gguf: Path, name: str, into: Path) -> None:
    """Write the model in another format; the file appears complete or not at all."""
    quiet()
    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype = FORMATS[name]
    wanted.allow_requantize = True
    wanted.nthread = 2
    unfinished = into.with_suffix(f".{os.getpid()}")
    status = llama_cpp.llama_model_quantize(str(gguf).encode(), str(unfinished).encode(), ctypes.byref(wanted))
    if status:
        unfinished.unlink(missing_ok=True)
        raise SystemExit(f"llama_model_quantize said {status}")
    unfinished.rename(into)


def main() -> None:
    """Quantize a model, or load one and do what standard input says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quantize", choices=FORMATS)
    parser.add_argument("--into", type=Path)
    options = parser.parse_args()
    if options.quantize:
        quantize(options.gguf, options.quantize, options.into)
    else:
        serve(LlamaCpp(options.gguf, options.threads))


if __name__ == "__main__":
    main()
