"""Downloads from a hub on loopback that speaks as Hugging Face's does: allow-listed, resumed, clear without network."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nsllm.node.engine.models import MARKER, model_digest
from nsllm.node.engine.store import add_from_hub, find
from nsllm.node.errors import ModelMissingError

COMMIT = "c0ffee" * 6 + "beef"
REPOSITORY = "lab/tiny-model"


def silent(_progress):
    """A report that nobody reads."""


@dataclass
class Hub:
    """Files of one repository."""

    files: dict[str, bytes] = field(default_factory=dict)
    break_after: dict[str, int] = field(default_factory=dict)
    """File to the number of bytes after which the connection is cut, once."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Of large files, as stated."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """(file, Range header) of each download."""


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            file = path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/")
            if path == f"/api/models/{REPOSITORY}/revision/main":
                siblings = [
                    {"rfilename": name, "size": len(raw)}
                    | (
                        {"lfs": {"sha256": hub.sha256[name], "size": len(raw), "pointerSize": 1}}
                        if name in hub.sha256
                        else {}
                    )
                    for name, raw in hub.files.items()
                ]
                about = {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings}
                self.reply(200, json.dumps(about).encode(), Content_Type="application/json")
            elif file in hub.files:
                self.file(file, hub.files[file])
            elif path.startswith(f"/api/models/{REPOSITORY}/"):
                self.reply(404, b"{}", X_Error_Code="RevisionNotFound")
            else:
                self.reply(404, b"{}", X_Error_Code="RepoNotFound")

        def file(self, name: str, raw: bytes) -> None:
            headers = {
                "ETag": f'"{hashlib.sha256(raw).hexdigest()}"',
                "X_Repo_Commit": COMMIT,
                "Accept_Ranges": "bytes",
            }
            wanted = self.headers.get("Range")
            if self.command == "HEAD":
                self.reply(200, raw, **headers)
                return
            hub.asked.append((name, wanted))
            start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
            if wanted:
                headers["Content_Range"] = f"bytes {start}-{len(raw) - 1}/{len(raw)}"
            cut = hub.break_after.pop(name, None)
            if cut is None:
                self.reply(206 if wanted else 200, raw[start:], **headers)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(raw[:cut])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True

    return Handler


@pytest.fixture
def hub(tiny, monkeypatch, tmp_path):
    files = {path.name: path.read_bytes() for path in tiny.text.iterdir() if path.name != MARKER}
    files |= {"README.md": b"---\nlicense: mit\n---\n", "pytorch_model.bin": b"\x80\x04.", "onnx/model.onnx": b"x"}
    made = Hub(files, sha256={"model.safetensors": hashlib.sha256(files["model.safetensors"]).hexdigest()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(made))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield made
    server.shutdown()
    server.server_close()


def test_a_model_is_downloaded_without_what_is_no_part_of_it(hub, tiny, tmp_path):
    seen = []
    added = add_from_hub(tmp_path, REPOSITORY, "main", "tiny", seen.append)
    folder = find(tmp_path, "tiny")
    assert folder == tmp_path / "models" / "tiny"
    assert model_digest(folder) == model_digest(tiny.text)
    assert added.left_out == ("onnx/model.onnx", "pytorch_model.bin")
    assert {name for name, _ in hub.asked} == set(hub.files) - set(added.left_out)
    assert hub.asked[-1][0] == "model.safetensors"  # weights last: first it is known whether they can be used
    assert (added.about.licence, added.about.source) == ("mit", f"hub:{REPOSITORY}@{COMMIT}")
    assert not (folder / ".cache").exists()
    assert seen[-1].done == seen[-1].total


def test_a_cut_connection_is_taken_up_where_it_was_cut(hub, tmp_path):
    raw = hub.files["model.safetensors"]
    hub.break_after = {"model.safetensors": 50_000}
    add_from_hub(tmp_path, REPOSITORY, "main", "tiny", silent)
    first, again = [wanted for name, wanted in hub.asked if name == "model.safetensors"]
    assert (first, again) == (None, "bytes=50000-")
    assert (find(tmp_path, "tiny") / "model.safetensors").read_bytes() == raw


def test_what_a_killed_download_left_is_gone_on_with(hub, tmp_path):
    raw = hub.files["model.safetensors"]
    part = tmp_path / "models" / ".part-tiny"
    part.mkdir(parents=True)
    (part / ".commit").write_text(COMMIT)
    (part / "config.json").write_bytes(hub.files["config.json"])
    (part / "model.safetensors.partial").write_bytes(raw[:1000])
    add_from_hub(tmp_path, REPOSITORY, "main", "tiny", silent)
    assert ("model.safetensors", "bytes=1000-") in hub.asked
    assert "config.json" not in {name for name, _ in hub.asked}
    assert (find(tmp_path, "tiny") / "model.safetensors").read_bytes() == raw


def test_what_is_left_of_another_commit_is_not_mixed_in(hub, tmp_path):
    part = tmp_path / "models" / ".part-tiny"
    part.mkdir(parents=True)
    (part / ".commit").write_text("d" * 40)
    (part / "model.safetensors.partial").write_bytes(b"old" * 100)
    (part / "config.json").write_bytes(b"{}")
    add_from_hub(tmp_path, REPOSITORY, "main", "tiny", silent)
    assert (find(tmp_path, "tiny") / "config.json").read_bytes() == hub.files["config.json"]
    assert ("model.safetensors", None) in hub.asked


def test_a_file_that_is_not_what_the_hub_states_is_removed(hub, tmp_path):
    hub.sha256["model.safetensors"] = "0" * 64
    with pytest.raises(ModelMissingError, match=r"model\.safetensors is not what the hub states"):
        add_from_hub(tmp_path, REPOSITORY, "main", "tiny", silent)
    assert not (tmp_path / "models" / ".part-tiny" / "model.safetensors").exists()
    assert find(tmp_path, "tiny") is None


def test_code_is_refused_before_the_weights_are_fetched(hub, tmp_path):
    hub.files["config.json"] = b'{"auto_map": {"AutoModel": "evil.Model"}}'
    with pytest.raises(ModelMissingError, match=r"evil\.Model"):
        add_from_hub(tmp_path, REPOSITORY, "main", "tiny", silent)
    assert "model.safetensors" not in {name for name, _ in hub.asked}
    assert find(tmp_path, "tiny") is None


def test_pickles_are_refused_before_anything_is_fetched(hub, tmp_path):
    del hub.files["model.safetensors"]
    with pytest.raises(ModelMissingError, match=r"pytorch_model\.bin is a pickle"):
        add_from_hub(tmp_path, REPOSITORY, "main", "tiny", silent)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("repository", "revision", "match"),
    [
        ("lab/none", "main", "no such model at the hub"),
        (REPOSITORY, "v9", "no revision 'v9'"),
        ("a/b/c", "main", "neither a folder here nor a name at the hub"),
    ],
)
def test_what_is_not_there_is_named(hub, tmp_path, repository, revision, match):
    with pytest.raises(ModelMissingError, match=match):
        add_from_hub(tmp_path, repository, revision, "x", silent)


def test_without_a_network_it_says_so(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelMissingError, match="the hub is not reached") as caught:
        add_from_hub(tmp_path, REPOSITORY, "main", "x", silent)
    assert "nsllm model add DIR" in caught.value.hint


def test_an_error_of_the_disk_is_clear(hub, tmp_path):
    (tmp_path / "models").write_text("a file where the store should be")
    with pytest.raises(ModelMissingError, match="cannot write models"):
        add_from_hub(tmp_path, REPOSITORY, "main", "x", silent)
    shutil.rmtree(tmp_path / "models", ignore_errors=True)
