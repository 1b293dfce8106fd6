"""Packed weights are used only whole, made by one worker at a time, and hold the very bits that packing makes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from dataclasses import fields

import pytest
import torch

from nsllm.node.engine import choice as choice_module
from nsllm.node.engine.choice import Choice, packed_place
from nsllm.node.engine.fast import packed
from nsllm.node.engine.fast.backend import FastBackend
from nsllm.node.engine.fast.packed import PREFIX_BYTES, Place, keep_packed, open_packed, write_packed
from nsllm.node.engine.fast.shape import read_shape
from nsllm.node.engine.fast.weights import PackedLinear, load_weights
from nsllm.node.engine.models import model_digest

MODEL = "ab" * 32


@pytest.fixture
def make(tiny):
    """Pack the tiny model's weights; counts how often."""
    shape = read_shape(json.loads((tiny.text / "config.json").read_bytes()))

    def make_it():
        make_it.calls += 1
        return load_weights(tiny.text, shape, "int8")

    make_it.calls = 0
    return make_it


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "packed", MODEL)


def flat(value):
    """Every leaf of the weights, in order."""
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in flat(item)]
    if hasattr(value, "__dataclass_fields__"):
        return [leaf for field in fields(value) for leaf in flat(getattr(value, field.name))]
    return [value]


def same(left, right):
    left, right = flat(left), flat(right)
    assert len(left) == len(right)
    for mine, other in zip(left, right, strict=True):
        if isinstance(mine, torch.Tensor):
            assert mine.dtype == other.dtype
            assert torch.equal(mine, other)
        else:
            assert mine == other


def test_what_is_mapped_is_what_was_packed(make, place, kernels):
    first = keep_packed(make, place, kernels)
    again = keep_packed(make, place, kernels)
    assert make.calls == 1
    same(first, make())
    same(again, first)
    assert isinstance(again.qkv[0], PackedLinear)
    for leaf in flat(again):
        if isinstance(leaf, torch.Tensor) and leaf.numel():
            assert leaf.data_ptr() % 64 == 0
    assert sorted(path.suffix for path in place.folder.iterdir()) == ["", ".packed"]


def test_a_backend_on_mapped_weights_gives_the_same_logits(tiny, kernels, place):
    def logits(where):
        backend = FastBackend(tiny.text, tiny.encoder, kernels, "int8", threads=1, cache_mb=1, packed=where)
        from nsllm.node.engine.backend import Read

        cache = backend.open([1, 2, 3], 8, side=False)
        return backend.forward([Read(cache, [1, 2, 3], 3)])[0].clone()

    plain = logits(None)
    assert torch.equal(plain, logits(place))
    assert torch.equal(plain, logits(place))


def cut(path):
    os.truncate(path, path.stat().st_size - 64)


def cut_to_nothing(path):
    os.truncate(path, 0)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def lie_about_lengths(path):
    data = bytearray(path.read_bytes())
    data[PREFIX_BYTES - 8 : PREFIX_BYTES] = (1 << 60).to_bytes(8, "little")
    path.write_bytes(data)


def be_something_else(path):
    path.write_bytes(b"x" * 4096)


@pytest.mark.parametrize("harm", [cut, cut_to_nothing, flip, lie_about_lengths, be_something_else])
def test_a_damaged_file_is_made_anew(make, place, kernels, harm):
    keep_packed(make, place, kernels)
    harm(place.file(kernels))
    assert open_packed(place.file(kernels)) is None
    same(keep_packed(make, place, kernels), make())
    assert make.calls == 3
    assert open_packed(place.file(kernels)) is not None


def test_a_writer_that_dies_leaves_nothing_that_is_used(make, place, kernels, monkeypatch):
    place.folder.mkdir()

    def stop(_handle):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packed.os, "fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            write_packed(place.file(kernels), make())
    assert list(place.folder.iterdir()) == []
    (place.folder / f"{packed.TEMPORARY}left").write_bytes(b"half")  # by one that was killed
    keep_packed(make, place, kernels)
    assert not (place.folder / f"{packed.TEMPORARY}left").exists()


def test_without_room_the_weights_stay_in_memory(make, place, kernels, monkeypatch, caplog):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed.os, "fsync", full)
    same(keep_packed(make, place, kernels), make())
    assert make.calls == 2
    assert "No space left on device" in caplog.text
    assert list(place.folder.glob("*.packed")) == []


def test_nobody_waits_for_ever_for_another_worker(make, place, kernels):
    place.folder.mkdir()
    with (place.folder / packed.LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        same(keep_packed(make, place, kernels, limit_s=0.01), make())
    assert make.calls == 2


def test_other_kernels_another_model_or_other_code_is_another_file(place, tmp_path, monkeypatch):
    first = place.file(tmp_path / "kernels-1.so")
    assert first == place.file(tmp_path / "elsewhere" / "kernels-1.so")
    assert first != place.file(tmp_path / "kernels-2.so")
    assert first != Place(place.folder, "cd" * 32).file(tmp_path / "kernels-1.so")
    monkeypatch.setattr(packed, "SOURCES", ("packed.py",))
    assert first != place.file(tmp_path / "kernels-1.so")


def test_two_layouts_of_a_model_are_kept_and_what_nobody_uses_goes(make, place, tmp_path):
    other = Place(place.folder, "cd" * 32)
    keep_packed(make, other, tmp_path / "a.so")
    forgotten = other.file(tmp_path / "a.so")
    past_s = forgotten.stat().st_mtime - packed.UNUSED_S - 1
    for age, name in enumerate(("a.so", "b.so", "c.so")):
        keep_packed(make, place, tmp_path / name)
        os.utime(place.file(tmp_path / name), (past_s + age + 100, past_s + age + 100))
    assert not place.file(tmp_path / "a.so").exists()
    assert place.file(tmp_path / "b.so").exists()
    os.utime(forgotten, (past_s, past_s))
    keep_packed(make, place, tmp_path / "d.so")
    assert not forgotten.exists()
    assert place.file(tmp_path / "d.so").exists()


def test_where_files_are_in_small_pages_each_worker_has_its_own_copy(make, place, kernels, monkeypatch):
    keep_packed(make, place, kernels)
    reserved = []

    def reserve(size_bytes):
        reserved.append(size_bytes)
        return torch.zeros(size_bytes, dtype=torch.uint8)

    monkeypatch.setattr(packed, "reserve", reserve)
    monkeypatch.setattr(packed, "_huge_bytes", lambda _address: 0)
    monkeypatch.setattr(packed, "_system_has_huge_pages", lambda: True)
    same(keep_packed(make, place, kernels), make())
    assert reserved == [place.file(kernels).stat().st_size]
    monkeypatch.setattr(packed, "_system_has_huge_pages", lambda: False)
    keep_packed(make, place, kernels)
    monkeypatch.setattr(packed, "_system_has_huge_pages", lambda: True)
    monkeypatch.setattr(packed, "_huge_bytes", lambda _address: 1 << 40)
    keep_packed(make, place, kernels)
    assert len(reserved) == 1


def test_only_large_models_on_the_fast_path_have_a_place(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("NSLLM_HOME", str(tmp_path / "home"))
    digest = model_digest(tiny.text)
    fast = Choice("int8", tmp_path / "kernels.so")
    assert packed_place(tiny.text, fast, digest) is None
    monkeypatch.setattr(choice_module, "PACKED_LEAST_BYTES", 1)
    assert packed_place(tiny.text, fast, digest) == tmp_path / "home" / "packed" / digest.hex()
    assert packed_place(tiny.text, Choice("bfloat16", None), digest) is None
    shutil.rmtree(tmp_path / "home", ignore_errors=True)
