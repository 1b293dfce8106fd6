"""Tiny random models, built once for all tests of this folder."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from pathlib import Path

import pytest

from nsllm.node.engine.fast.build import build
from nsllm.node.engine.models import ModelPaths
from nsllm.node.engine.tiny import build_tiny_models


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> ModelPaths:
    """Paths of the tiny models; do not change the files."""
    return build_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def kernels(tmp_path_factory) -> Path:
    """The compiled fast path."""
    return build(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def general(tiny):
    """transformers over the tiny models, in this process."""
    import torch

    from nsllm.node.engine.general import TransformersBackend

    torch.set_num_threads(1)
    return TransformersBackend(tiny.text, tiny.encoder)


@pytest.fixture
def fast(tiny, kernels):
    """The fast path over the tiny models, in float32."""
    from nsllm.node.engine.fast.backend import FastBackend

    return FastBackend(tiny.text, tiny.encoder, kernels, "float32", threads=1, cache_mb=1)


@pytest.fixture
def batched(tiny):
    """The batched path over the tiny models, in float32 on the CPU."""
    from nsllm.node.engine.batched.backend import BatchedBackend

    return BatchedBackend(tiny.text, tiny.encoder, "float32", "cpu", library=None, cache_mb=1)


@pytest.fixture(params=["general", "fast", "batched"])
def backend(request):
    """Each backend over the same model: what they give is the same."""
    return request.getfixturevalue(request.param)
