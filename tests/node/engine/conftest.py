"""Tiny random models, built once for all tests of this folder."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest

from nsllm.node.engine.models import ModelPaths
from nsllm.node.engine.tiny import build_tiny_models


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> ModelPaths:
    """Paths of the tiny models; do not change the files."""
    return build_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def backend(tiny):
    """The real backend over the tiny models, in this process."""
    import torch

    from nsllm.node.engine.backend import TransformersBackend

    torch.set_num_threads(1)
    return TransformersBackend(tiny.text, tiny.encoder)
