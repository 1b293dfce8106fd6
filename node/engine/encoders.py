"""Which code reads texts with an encoder's folder."""

from __future__ import annotations

import json
from pathlib import Path

from nsllm.node.engine.backend import Encoder
from nsllm.node.engine.fast.encoder import BertEncoder
from nsllm.node.engine.fast.encoder_files import BertFiles, runs
from nsllm.node.engine.fast.native_encoder import NativeEncoder, encodes


def open_encoder(folder: Path, library: Path | None = None, *, threads: int = 1) -> Encoder:
    """Compiled kernels where they can, else torch, else transformers.

    Args:
        folder: of the encoder.
        library: the compiled kernels; None: there are none.
        threads: that kernels compute with.
    """
    if not runs(json.loads((folder / "config.json").read_bytes())) or not (folder / "tokenizer.json").is_file():
        from nsllm.node.engine.general import TransformersEncoder  # takes seconds to import

        return TransformersEncoder(folder)
    files = BertFiles(folder)
    if library is not None and encodes(library, files):
        return NativeEncoder(folder, files, library, threads=threads)
    return BertEncoder(folder)
