"""Texts as the peer's encoder embeds them, in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from nsllm.node.engine.fast.encoder import BertEncoder
from nsllm.node.engine.models import ENCODER_FOLDER, default_home

BATCH: Final = 16


def embed(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors, (texts, 384), of the default encoder, which must be there (`make up` fetches it)."""
    torch.set_num_threads(1)
    encoder = BertEncoder(default_home(os.environ) / "models" / ENCODER_FOLDER)
    rows = encoder.read(texts)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    found = np.zeros((len(texts), 384), np.float32)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        found[batch] = encoder.vectors([rows[index] for index in batch]).numpy()
    return found
