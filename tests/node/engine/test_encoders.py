"""Whatever reads texts gives the encoder's vectors; compiled kernels give the same bits whatever is read beside."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from nsllm.node.engine.encoders import open_encoder
from nsllm.node.engine.fast.backend import FastBackend
from nsllm.node.engine.fast.encoder import BertEncoder
from nsllm.node.engine.fast.encoder_files import BertFiles
from nsllm.node.engine.fast.native_encoder import NativeEncoder, encodes

TEXTS = ["one", "", "a longer text than the others " * 20, "Grüße 🦊", *("x y" * count for count in range(1, 24))]
SIZES = {"tiny": None, "odd": (2, 48, 3, 80), "wide heads": (1, 128, 1, 32), "one tile": (3, 16, 1, 16)}
"""Layers, hidden, heads, inner."""


@pytest.fixture(scope="module", params=SIZES)
def folder(request, tiny, tmp_path_factory):
    """Encoders of several sizes, with weights wide enough that attention is not uniform."""
    if SIZES[request.param] is None:
        return tiny.encoder
    from transformers import BertConfig, BertModel

    layers, hidden, heads, inner = SIZES[request.param]
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    shutil.copytree(tiny.encoder, folder)
    config = BertConfig(
        vocab_size=json.loads((folder / "config.json").read_text())["vocab_size"],
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = BertModel(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder)
    return folder


@pytest.fixture
def native(folder, kernels):
    """The kernels' encoder on processors that multiply bfloat16, torch's on others."""
    encoder = open_encoder(folder, kernels)
    assert isinstance(encoder, NativeEncoder if encodes(kernels, BertFiles(folder)) else BertEncoder)
    return encoder


def test_vectors_are_those_of_the_exact_encoder_up_to_bfloat16(folder, native):
    exact = BertEncoder(folder, torch.float32)
    rows = exact.read(TEXTS)
    assert native.read(TEXTS) == rows
    expected, found = exact.vectors(rows), native.vectors(rows)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(rows)), atol=1e-5, rtol=0)
    assert (expected * found).sum(1).min() > 0.999
    assert len(torch.unique(found, dim=0)) == len({tuple(row) for row in rows})


def test_a_vector_is_the_same_bits_alone_in_company_and_with_more_threads(folder, kernels, native):
    rows = native.read(TEXTS)
    if not isinstance(native, NativeEncoder):  # torch multiplies otherwise shaped matrices in other orders
        return
    alone = torch.cat([native.vectors([row]) for row in rows])
    assert torch.equal(alone, native.vectors(rows))
    assert torch.equal(alone.flip(0), native.vectors(rows[::-1]))
    team = NativeEncoder(folder, BertFiles(folder), kernels, threads=3)
    assert torch.equal(alone, team.vectors(rows))
    team.close()


def test_a_text_without_tokens_has_no_direction(native):
    ids = native.read([[5, 6]])[0]
    found = native.vectors([[], ids])
    assert not found[0].any()
    assert torch.equal(found[1:], native.vectors([ids]))


def test_the_fast_path_reads_with_the_kernels_where_they_can(tiny, kernels, monkeypatch):
    kind = NativeEncoder if encodes(kernels, BertFiles(tiny.encoder)) else BertEncoder
    assert isinstance(FastBackend(tiny.text, tiny.encoder, kernels, "int8", threads=1, cache_mb=1).encoder, kind)
    assert isinstance(open_encoder(tiny.encoder), BertEncoder)  # nothing was compiled
    monkeypatch.setattr("nsllm.node.engine.encoders.encodes", lambda *_about: False)
    assert isinstance(open_encoder(tiny.encoder, kernels), BertEncoder)


def test_kernels_take_no_encoder_whose_sizes_are_not_theirs(tiny, kernels):
    files = BertFiles(tiny.encoder)
    files.heads = 48  # of 8 numbers each
    assert not encodes(kernels, files)


def test_other_encoders_are_left_to_transformers(tiny, tmp_path, kernels):
    from nsllm.node.engine.general import TransformersEncoder

    folder = tmp_path / "encoder"
    shutil.copytree(tiny.encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert isinstance(open_encoder(folder, kernels), TransformersEncoder)
