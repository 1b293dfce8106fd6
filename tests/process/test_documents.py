"""Documents on real peers: taken in with the command, held elsewhere, cited by an answer whose receipt shows them."""

from __future__ import annotations

import hashlib
import json

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]

TEXT = "Aldern light: 1871."


@pytest.fixture
def net(lay_out_tiny, tiny_models, tmp_path):
    net = lay_out_tiny(tmp_path / "net", tiny_models, peers=2, first_port=25000)
    for index in (0, 1):
        net.start(index)
    net.until_ready(0, 1)
    yield net
    net.stop()


def test_a_document_goes_from_a_file_into_an_answers_receipt(net, nsllm, tmp_path):
    def run(*arguments, peer=0):
        done = nsllm(*arguments, "--data-dir", str(net.places[peer].data_dir), "--json")
        return done.returncode, json.loads(done.stdout), done.stderr

    good, junk, latin = tmp_path / "light.md", tmp_path / "junk.bin", tmp_path / "latin.txt"
    good.write_text(TEXT)
    junk.write_bytes(bytes(range(256)) * 50)
    latin.write_bytes("Größe".encode("latin-1"))
    digest = "0x" + hashlib.sha256(TEXT.encode()).hexdigest()
    status, said, _ = run("ingest", str(good), str(junk), str(latin), str(tmp_path / "missing.txt"))
    assert status == 1
    (taken,) = said["documents"]
    assert (taken["document"], taken["source"], taken["chunks"], taken["added"]) == (digest, "light.md", 1, 1)
    assert [row["code"] for row in said["failed"]] == ["bad_file"] * 3
    assert "missing.txt" in said["failed"][2]["message"]
    status, said, _ = run("ingest", str(good))
    assert (status, said["documents"][0]["added"]) == (0, 0)

    def held(peer):
        return [row["source"] for row in run("documents", "list", "--all", peer=peer)[1]["documents"]]

    net.until(lambda: held(1) == ["light.md"], "the other peer holds the chunk")
    net.kill(0)  # and comes back with what it had acknowledged
    net.start(0)
    net.until_ready(0, 1)
    assert held(0) == ["light.md"]
    answer = net.ask(1, "When?", retrieve=1, visibility="public")
    (cited,) = answer["nsllm"]["evidence"]
    assert (cited["source"], cited["document"], cited["span"]) == ("light.md", digest, [0, len(TEXT)])
    assert cited["member"] == net.places[0].address
    assert answer["headers"]["x-nsllm-evidence"] == cited["chunk"]
    receipt = net.receipt(1, answer["id"], wait="certified")
    (evidence,) = receipt.json()["signed"]["record"]["evidence"]
    assert evidence["chunk"]["text"] == TEXT
    path = tmp_path / "r.json"
    path.write_text(receipt.text)
    checked = nsllm("verify", str(path), "--genesis", str(net.genesis), "--json")
    assert checked.returncode == 0, checked.stdout

    status, said, _ = run("documents", "remove", "light.md")
    assert (status, said["removed"]) == (0, 1)
    net.until(lambda: held(1) == [], "the other peer forgets the chunk")
    assert net.ask(1, "When?", retrieve=1, visibility="public")["nsllm"]["evidence"] == []
