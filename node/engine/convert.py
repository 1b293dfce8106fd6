"""GGUF to safetensors: models of the Llama family, the shipped one among them, in files that load quickly.

Written by hand rather than through transformers, whose GGUF loader needs accelerate, takes 15 s and 1.5 GB, forgets
SmolLM's digit splitting, and refuses to save what it loaded. This one streams tensor by tensor (about 400 MB), and its
output depends on the input file alone, so that every machine gets the same model digest.

Runs as a child process (`python -m nsllm.node.engine.convert GGUF-OR-FOLDER FOLDER DTYPE`), which prints `done total`
lines (tensors), so that the peer's memory stays small. Imports neither torch nor transformers.

Sources: GGUF specification (ggml-org/ggml docs/gguf.md); llama.cpp `convert_hf_to_gguf.py` for names and the
query/key permutation; safetensors README for the file format; SmolLM2 model card for sampling (temperature 0.2,
top_p 0.9).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray

from nsllm.node.engine.fetch import CANNOT_CONVERT
from nsllm.node.engine.gguf_tokenizer import (
    check_tokenizer,
    field,
    special_tokens,
    tokenizer_config,
    tokenizer_json,
)
from nsllm.node.engine.origin import write_card
from nsllm.node.engine.recast import (
    CODES,
    ConversionError,
    Out,
    recast,
    to_bfloat16,
    write_json,
    write_safetensors,
)
from nsllm.node.engine.weights import Dtype
from nsllm.node.errors import ModelMissingError

LAYER_NAMES: Final = {
    "attn_norm": "input_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER_NAMES: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
KINDS: Final = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""Architectures by GGUF's names, which are Hugging Face's model types as well; Mistral's models are `llama` there."""
PERMUTED: Final = ("llama",)
"""Architectures whose queries and keys llama.cpp keeps in another order."""
CARD_SAMPLING: Final = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
"""Of SmolLM2."""
SLOWED: Final = "rope_freqs.weight"
LOW, HIGH, TRAINED_TOKENS = 1.0, 4.0, 8192
"""Of Llama 3.1 to 3.3, as their config.json has them."""


def convert(gguf: Path, folder: Path, report: Callable[[int, int], None], dtype: Dtype = "bfloat16") -> None:
    """Write `gguf` as a Hugging Face model folder: safetensors, tokenizer, configuration, chat template.

    Args:
        gguf: a file of the Llama family (Llama, Mistral, Qwen2, Qwen3) with a tokenizer of a known kind.
        folder: exists and is empty.
        report: called with tensors done and total.
        dtype: what the weights become; `int8` is made of bfloat16, see `recast`.

    Raises:
        ConversionError: another architecture or tokenizer, or a tensor that has no place.
        OSError: as the file system says.
    """
    if dtype == "int8":
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            halfway = Path(work) / gguf.stem
            halfway.mkdir()
            convert(gguf, halfway, report)
            recast(halfway, folder, dtype, report)
        return
    reader = GGUFReader(gguf)
    kind = field(reader, "general.architecture")
    if kind not in KINDS:
        known = ", ".join(repr(name) for name in KINDS)
        raise ConversionError(f"{gguf.name}: architecture {kind!r}, expected one of {known}")
    check_tokenizer(reader, gguf.name)
    config = _config(reader, dtype)
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer.json", tokenizer_json(reader))
    write_json(folder / "tokenizer_config.json", tokenizer_config(reader, config["max_position_embeddings"]))
    template = field(reader, "tokenizer.chat_template", None)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write_card(reader, folder)
    sampling = CARD_SAMPLING if field(reader, "tokenizer.ggml.pre", "") == "smollm" else {}
    ids = {name: value for name, value in config.items() if name.endswith("_token_id")}
    turn_end = field(reader, "tokenizer.ggml.eot_token_id", None)
    if turn_end is not None and turn_end != ids.get("eos_token_id", turn_end):
        ids["eos_token_id"] = [ids["eos_token_id"], turn_end]
    write_json(folder / "generation_config.json", {**ids, **sampling})
    heads = (config["num_attention_heads"], config["num_key_value_heads"])
    tensors = list(_outs(reader, heads if kind in PERMUTED else None, dtype))
    done = 0

    def written() -> None:
        nonlocal done
        done += 1
        report(done, len(tensors))

    write_safetensors(folder / "model.safetensors", tensors, written)


def _config(reader: GGUFReader, dtype: Dtype) -> dict[str, Any]:
    kind: str = field(reader, "general.architecture")

    def said(name: str, default: Any = None) -> Any:
        value = field(reader, f"{kind}.{name}", default)
        if value is None:
            raise ConversionError(f"no field '{kind}.{name}' in the GGUF file")
        return value

    hidden, heads = said("embedding_length"), said("attention.head_count")
    shapes = {tensor.name: tuple(map(int, reversed(tensor.shape))) for tensor in reader.tensors}
    return {
        "architectures": [KINDS[kind]],
        "model_type": kind,
        "dtype": dtype,
        "hidden_size": hidden,
        "intermediate_size": said("feed_forward_length"),
        "num_hidden_layers": said("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": said("attention.head_count_kv", heads),
        "head_dim": said("attention.key_length", hidden // heads),
        "max_position_embeddings": said("context_length"),
        # The file holds float32 neighbours of 1e-5 and 100000; the model card's numbers are the exact ones.
        "rms_norm_eps": float(f"{said('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_parameters": _rope(reader, float(said("rope.freq_base", 10_000.0)), said("rope.scaling.type", "none")),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in shapes,
        **{f"{name}_id": token for name, token in special_tokens(reader).items() if name != "unk_token"},
    }


def _rope(reader: GGUFReader, theta: float, scaling: str) -> dict[str, Any]:
    """Llama 3.1 to 3.3 store what the pairs of numbers are slowed down by, not the parameters behind it."""
    slowed = next((tensor for tensor in reader.tensors if tensor.name == SLOWED), None)
    if scaling != "none":
        raise ConversionError(f"positions are scaled in the way {scaling!r}, which this converter does not know")
    if slowed is None:
        return {"rope_type": "default", "rope_theta": theta}
    stored = np.asarray(slowed.data, np.float32)
    turned = TRAINED_TOKENS * theta ** (-np.arange(len(stored)) / len(stored)) / (2 * np.pi)
    kept = np.clip((turned - LOW) / (HIGH - LOW), 0, 1)
    factor = float(stored.max())
    if not np.allclose(stored, 1 / ((1 - kept) / factor + kept), rtol=1e-3):
        raise ConversionError(f"{SLOWED} is not what Llama 3.1 to 3.3 have, which this converter expects")
    return {
        "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": LOW, "high_freq_factor": HIGH,
        "original_max_position_embeddings": TRAINED_TOKENS,
    }  # fmt: skip


def _write_card(reader: GGUFReader, folder: Path) -> None:
    """What the file says of its name and licence."""
    said = {}
    for key in ("license", "name", "organization"):
        field = reader.get_field(f"general.{key}")
        if field is not None:
            said[key] = " ".join(str(field.contents()).split())
    by = f" by {said['organization']}" if "organization" in said else ""
    named = f"{said.get('name', 'A model')}{by}"
    write_card(folder, said.get("license", ""), f"{named}, converted from GGUF to bfloat16.")


def _outs(reader: GGUFReader, heads: tuple[int, int] | None, dtype: Dtype) -> Iterator[Out]:
    convert, width = (to_bfloat16, 2) if dtype == "bfloat16" else (np.ascontiguousarray, 4)
    for tensor in reader.tensors:
        if tensor.name == SLOWED:
            continue
        shape = tuple(int(length) for length in reversed(tensor.shape))  # GGUF lists the fastest dimension first
        make = partial(_bytes, tensor, heads, convert)
        yield Out(_name(tensor.name), CODES[dtype], shape, width * int(tensor.n_elements), make)


def _bytes(tensor: Any, heads: tuple[int, int] | None, convert: Callable[[NDArray[np.float32]], NDArray[Any]]) -> bytes:
    values = dequantize(tensor.data, tensor.tensor_type)
    if heads is not None and ".attn_q." in tensor.name:
        values = _unpermuted(values, heads[0])
    elif heads is not None and ".attn_k." in tensor.name:
        values = _unpermuted(values, heads[1])
    return convert(values).tobytes()


def _unpermuted(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows (heads * head_dim, hidden) from llama.cpp's interleaved rotary order back to Hugging Face's halves."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _name(gguf_name: str) -> str:
    match gguf_name.split("."):
        case ["blk", layer, name, ("weight" | "bias") as part] if name in LAYER_NAMES:
            return f"model.layers.{layer}.{LAYER_NAMES[name]}.{part}"
        case [name, "weight"] if name in OUTER_NAMES:
            return f"{OUTER_NAMES[name]}.weight"
    raise ConversionError(f"tensor {gguf_name!r} has no place in a model of the Llama family")


def main(arguments: list[str]) -> int:
    """`GGUF-OR-FOLDER FOLDER DTYPE`: convert, print `done total` lines; one line on standard error if it cannot be."""

    def say(done: int, total: int) -> None:
        sys.stdout.write(f"{done} {total}\n")
        sys.stdout.flush()

    source, folder = Path(arguments[0]), Path(arguments[1])
    dtype: Dtype = arguments[2]  # type: ignore[assignment]  # one of ours, from `fetch`
    try:
        (recast(source, folder, dtype, say) if source.is_dir() else convert(source, folder, say, dtype))
    except (ConversionError, ModelMissingError) as error:
        sys.stderr.write(f"{error}\n")
        return CANNOT_CONVERT
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
