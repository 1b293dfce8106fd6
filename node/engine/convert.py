"""GGUF to safetensors: the shipped text model, turned once into files that load in a third of a second.

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
CONTROL_TOKEN: Final = 3
"""GGUF's token type for control tokens."""
CARD_SAMPLING: Final = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}


def convert(gguf: Path, folder: Path, report: Callable[[int, int], None], dtype: Dtype = "bfloat16") -> None:
    """Write `gguf` as a Hugging Face model folder: safetensors, tokenizer, configuration, chat template.

    Args:
        gguf: a Llama-architecture file with a byte-level BPE tokenizer.
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
    if _field(reader, "general.architecture") != "llama":
        raise ConversionError(f"{gguf.name}: architecture {_field(reader, 'general.architecture')!r}, expected 'llama'")
    if _field(reader, "tokenizer.ggml.model") != "gpt2" or _field(reader, "tokenizer.ggml.pre") != "smollm":
        raise ConversionError(f"{gguf.name}: tokenizer {_field(reader, 'tokenizer.ggml.pre')!r}, expected 'smollm'")
    config = _config(reader, dtype)
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer.json", _tokenizer(reader, tokens))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(reader, tokens))
    (folder / "chat_template.jinja").write_text(_field(reader, "tokenizer.chat_template"), encoding="utf-8")
    (folder / "README.md").write_text(_card(reader), encoding="utf-8")
    ids = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]}
    write_json(folder / "generation_config.json", {**ids, "pad_token_id": config["pad_token_id"], **CARD_SAMPLING})
    heads = (config["num_attention_heads"], config["num_key_value_heads"])
    tensors = list(_outs(reader, heads, dtype))
    done = 0

    def written() -> None:
        nonlocal done
        done += 1
        report(done, len(tensors))

    write_safetensors(folder / "model.safetensors", tensors, written)


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise ConversionError(f"no field {name!r} in the GGUF file")
    return field.contents()


def _config(reader: GGUFReader, dtype: Dtype) -> dict[str, Any]:
    hidden, heads = _field(reader, "llama.embedding_length"), _field(reader, "llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": dtype,
        "hidden_size": hidden,
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv"),
        "head_dim": hidden // heads,
        "max_position_embeddings": _field(reader, "llama.context_length"),
        # The file holds float32 neighbours of 1e-5 and 100000; the model card's numbers are the exact ones.
        "rms_norm_eps": float(f"{_field(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(_field(reader, "llama.rope.freq_base"))},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": _field(reader, "llama.vocab_size"),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
    }


def _tokenizer(reader: GGUFReader, tokens: list[str]) -> dict[str, Any]:
    """tokenizer.json: byte-level BPE; `pre = smollm` means that every digit stands alone."""
    kinds = _field(reader, "tokenizer.ggml.token_type")
    merges: list[str] = _field(reader, "tokenizer.ggml.merges")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags}
            for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == CONTROL_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def _card(reader: GGUFReader) -> str:
    """A model card as short as can be: what the file says of its name and licence, for people."""
    said = {}
    for key in ("license", "name", "organization"):
        field = reader.get_field(f"general.{key}")
        if field is not None:
            said[key] = " ".join(str(field.contents()).split())
    front = f"license: {said['license']}\n" if "license" in said else ""
    by = f" by {said['organization']}" if "organization" in said else ""
    return f"---\n{front}---\n{said.get('name', 'A model')}{by}, converted from GGUF to bfloat16.\n"


def _tokenizer_config(reader: GGUFReader, tokens: list[str]) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": _field(reader, "llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "bos_token": tokens[_field(reader, "tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[_field(reader, "tokenizer.ggml.eos_token_id")],
        "pad_token": tokens[_field(reader, "tokenizer.ggml.padding_token_id")],
        "unk_token": tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
    }


def _outs(reader: GGUFReader, heads: tuple[int, int], dtype: Dtype) -> Iterator[Out]:
    convert, width = (to_bfloat16, 2) if dtype == "bfloat16" else (np.ascontiguousarray, 4)
    for tensor in reader.tensors:
        shape = tuple(int(length) for length in reversed(tensor.shape))  # GGUF lists the fastest dimension first
        make = partial(_bytes, tensor, heads, convert)
        yield Out(_name(tensor.name), CODES[dtype], shape, width * int(tensor.n_elements), make)


def _bytes(tensor: Any, heads: tuple[int, int], convert: Callable[[NDArray[np.float32]], NDArray[Any]]) -> bytes:
    values = dequantize(tensor.data, tensor.tensor_type)
    if ".attn_q." in tensor.name:
        values = _unpermuted(values, heads[0])
    elif ".attn_k." in tensor.name:
        values = _unpermuted(values, heads[1])
    return convert(values).tobytes()


def _unpermuted(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows (heads * head_dim, hidden) from llama.cpp's interleaved rotary order back to Hugging Face's halves."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _name(gguf_name: str) -> str:
    parts = gguf_name.split(".")
    if parts[-1] == "weight" and parts[0] == "blk" and len(parts) == 4 and parts[2] in LAYER_NAMES:
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight"
    if parts[-1] == "weight" and len(parts) == 2 and parts[0] in OUTER_NAMES:
        return f"{OUTER_NAMES[parts[0]]}.weight"
    raise ConversionError(f"tensor {gguf_name!r} has no place in a Llama model")


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
