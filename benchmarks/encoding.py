"""Texts as the peer's encoder embeds them, in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

from nsllm.node.engine.fast.encoder import BertEncoder
from nsllm.node.engine.models import ENCODER_FOLDER, default_home


def embed(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors, (texts, 384), of the default encoder, which must be there (`make up` fetches it)."""
    torch.set_num_threads(1)
    encoder = BertEncoder(default_home(os.environ) / "models" / ENCODER_FOLDER)
    found = np.zeros((len(texts), 384), np.float32)
    for rows, vectors, _tokens in encoder.embed(texts):
        found[rows] = vectors.numpy()
    return found
