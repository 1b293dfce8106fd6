"""Records go from a running peer to a file and from there to another, which keeps the sound ones and names the rest."""

from __future__ import annotations

import base64
import json
from pathlib import Path

MOST = 40
"""Questions until some peer lacks two records that another one holds: placement gives each to two peers or more."""


def damaged(line: bytes) -> bytes:
    """The same line with one byte of its record changed."""
    row = json.loads(line)
    body = bytearray(base64.b64decode(row["certified"]))
    body[len(body) // 2] ^= 1
    return json.dumps(row | {"certified": base64.b64encode(body).decode()}).encode()


def test_records_are_brought_from_one_peer_to_another(tiny_net, nsllm, lay_out_tiny, tiny_models, tmp_path: Path):
    net = tiny_net
    for number in range(MOST):
        asked = net.ask(0, f"What should a traveller know about harbour {number}?", visibility="public")
        net.receipt(0, asked["id"])
        held = [net.status(index)["cache"]["records"] for index in range(3)]
        if max(held) - min(held) >= 2:
            break
    source, target = held.index(max(held)), held.index(min(held))
    at_source, at_target = (("--data-dir", str(net.places[index].data_dir), "--json") for index in (source, target))

    file = tmp_path / "records.jsonl"
    exported = nsllm("cache", "export", str(file), *at_source)
    assert exported.returncode == 0, exported.stderr
    lines = file.read_bytes().splitlines(keepends=True)
    total = json.loads(exported.stdout)["records"]
    assert total == len(lines) - 2 >= max(held)

    harmed = tmp_path / "harmed.jsonl"
    harmed.write_bytes(b"".join([lines[0], damaged(lines[1]) + b"\n", *lines[2:]]))
    brought = nsllm("cache", "import", str(harmed), *at_target)
    told = json.loads(brought.stdout)
    assert brought.returncode == 1, "one was refused"
    (refused,) = told["refused"]
    assert (refused["line"], refused["record"]) == (2, json.loads(lines[1])["record"])
    assert refused["reason"]
    assert told["stored"] >= 1
    assert told["stored"] + told["known"] == total - 1
    assert net.status(target)["cache"]["records"] >= min(held) + told["stored"]

    again = nsllm("cache", "import", str(file), *at_target)
    assert again.returncode == 0, again.stderr
    whole = json.loads(again.stdout)
    assert whole["refused"] == []
    assert whole["stored"] <= 1, "what was there already is not stored twice"
    assert whole["stored"] + whole["known"] == total

    asleep = lay_out_tiny(tmp_path / "asleep", tiny_models, peers=1)
    nobody = nsllm("cache", "export", str(tmp_path / "nothing"), "--data-dir", str(asleep.places[0].data_dir))
    assert nobody.returncode != 0
    assert "Traceback" not in nobody.stderr
    assert str(asleep.url(0)) in nobody.stderr
    assert not (tmp_path / "nothing").exists()
