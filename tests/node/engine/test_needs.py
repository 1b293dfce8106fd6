"""The memory that a worker is reckoned to take is what it reserves."""

from __future__ import annotations

import json
import shutil

import pytest

from nsllm.node.engine.choice import Choice
from nsllm.node.engine.fast.backend import FastBackend
from nsllm.node.engine.fast.room import block_bytes
from nsllm.node.engine.fast.shape import read_shape
from nsllm.node.engine.needs import BASE_BYTES, worker_bytes

MB = 1 << 20


@pytest.fixture
def long(tiny, tmp_path):
    """The tiny model with a context of 8192 tokens: 4 MB of keys and values in float32."""
    folder = tmp_path / "long"
    shutil.copytree(tiny.text, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    return folder


@pytest.mark.parametrize(("cache_mb", "room_mb"), [(1, 8), (8, 8), (20, 20)])
def test_two_full_contexts_have_room_and_are_counted(long, tiny, kernels, cache_mb, room_mb):
    backend = FastBackend(long, tiny.encoder, kernels, "float32", threads=1, cache_mb=cache_mb)
    shape = read_shape(json.loads((long / "config.json").read_text()))
    _, blocks = backend.room()
    assert blocks * block_bytes(shape, "float32") == room_mb * MB
    choice = Choice("float32", kernels)
    more_bytes = worker_bytes(long, choice, 100) - worker_bytes(long, choice, cache_mb)
    assert more_bytes == (100 - room_mb) * MB


def test_the_batched_path_is_reckoned_where_its_memory_is(long):
    here = Choice("float32", None, "cpu")
    assert worker_bytes(long, here, 100) - worker_bytes(long, here, 20) == 80 * MB
    assert worker_bytes(long, here, 1) > BASE_BYTES + 8 * MB
    assert worker_bytes(long, Choice("float32", None, "cuda:0"), 100) == BASE_BYTES


def test_the_general_path_is_reckoned_by_its_files(long):
    general = Choice("float32", None)
    assert worker_bytes(long, general, 1) == worker_bytes(long, general, 100)
