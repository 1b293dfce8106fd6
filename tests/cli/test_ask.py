"""`nsllm ask` and `nsllm receipt` against a stand-in of the API."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ANSWER = "The sky is blue because… ☀"


def test_the_answer_goes_to_stdout_the_rest_to_stderr(nsllm: Callable, peer: Any) -> None:
    said = nsllm("ask", "Why?", "--api", peer.url)
    assert said.status == 0
    assert said.out == ANSWER + "\n"
    assert "source engine" in said.err
    assert "score 0.812" in said.err
    assert "height 7" in said.err


def test_only_what_was_set_is_sent(nsllm: Callable, peer: Any) -> None:
    nsllm("ask", "Why?", "--api", peer.url)
    assert peer.body() == {"messages": [{"role": "user", "content": "Why?"}], "model": "smol", "stream": True}


def test_every_option_is_sent(nsllm: Callable, peer: Any) -> None:
    options = ["--visibility", "group", "--model", "m", "--max-tokens", 5, "--temperature", 0.5, "--seed", 3]
    nsllm("ask", "Why?", "--api", peer.url + "/v1/", "--key", "k" * 16, *options)
    sent = peer.body()
    assert (sent["visibility"], sent["model"], sent["max_tokens"], sent["temperature"], sent["seed"]) == (
        "group", "m", 5, 0.5, 3,
    )  # fmt: skip
    assert all(headers["authorization"] == "Bearer " + "k" * 16 for _, _, headers, _ in peer.requests)


def test_a_question_from_standard_input(nsllm: Callable, peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("From a pipe?"))
    nsllm("ask", "-", "--api", peer.url)
    assert peer.body()["messages"][0]["content"] == "From a pipe?"


def test_a_schema_is_read_and_sent(nsllm: Callable, peer: Any, tmp_path: Path) -> None:
    path = tmp_path / "person.json"
    path.write_text('{"type": "object"}')
    nsllm("ask", "Who?", "--api", peer.url, "--json-schema", str(path))
    assert peer.body()["response_format"]["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize(
    ("text", "says"), [("{", "is not JSON"), ("[]", "holds no JSON schema"), (None, "cannot read")]
)
def test_a_file_that_is_no_schema_is_not_sent(
    nsllm: Callable, peer: Any, tmp_path: Path, text: str | None, says: str
) -> None:
    path = tmp_path / "person.json"
    if text is not None:
        path.write_text(text)
    said = nsllm("ask", "Who?", "--api", peer.url, "--json-schema", str(path))
    assert said.status == 2
    assert says in said.err
    assert peer.requests == []


def test_json_is_one_object(nsllm: Callable, peer: Any) -> None:
    said = nsllm("ask", "Why?", "--api", peer.url, "--json").json()
    assert (said["answer"], said["score"], said["height"], said["source"]) == (ANSWER, 0.812345, 7, "engine")
    assert said["signers"] == ["0xaa", "0xbb", "0xcc"]
    assert said["receipt"] is None


PNG = b"\x89PNG\r\n\x1a\n and so on"


def test_files_go_along_before_the_question(nsllm: Callable, peer: Any, tmp_path: Path) -> None:
    picture, table, more = tmp_path / "f.png", tmp_path / "f.csv", tmp_path / "G.JSON"
    picture.write_bytes(PNG)
    table.write_bytes(b"a,b\n1,2\n")
    more.write_bytes(b"{}")
    note = {"digest": "0x" + "ab" * 32, "kind": "image", "how": "ocr+labels", "name": ""}
    peer.attachments = [note]
    files = ["--image", picture, "--data", table, "--image", picture, "--data", more]
    said = nsllm("ask", "What?", "--api", peer.url, *files)
    assert said.status == 0
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(PNG).decode()}}
    assert peer.body()["messages"][0]["content"] == [
        image,
        image,
        {"type": "file", "file": {"filename": "f.csv", "file_data": "data:text/csv;base64,YSxiCjEsMgo="}},
        {"type": "file", "file": {"filename": "G.JSON", "file_data": "data:application/json;base64,e30="}},
        {"type": "text", "text": "What?"},
    ]
    assert "image 0xabababababab…: its text and what it likely shows" in said.err
    assert nsllm("ask", "What?", "--api", peer.url, "--json", "--image", picture).json()["attachments"] == [note]


@pytest.mark.parametrize(
    ("option", "name", "content", "says"),
    [
        ("--image", "f.gif", b"GIF89a", "no picture that peers take"),
        ("--image", "none.png", None, "cannot read"),
        ("--image", "huge.png", PNG * 500_000, "larger than 6,291,456 bytes"),
        ("--data", "f.txt", b"a,b", "no data that peers take"),
        ("--data", "huge.csv", b"a" * 1_048_577, "larger than 1,048,576 bytes"),
    ],
)
def test_a_file_that_no_peer_takes_is_not_sent(
    nsllm: Callable, peer: Any, tmp_path: Path, option: str, name: str, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    said = nsllm("ask", "What?", "--api", peer.url, option, tmp_path / name)
    assert said.status != 0
    assert says in said.err
    assert peer.requests == []


def test_with_receipt_it_returns_once_anchored(nsllm: Callable, peer: Any, tmp_path: Path) -> None:
    peer.levels = ["pending", "certified", "logged", "anchored"]
    file = tmp_path / "r.json"
    said = nsllm("ask", "Why?", "--api", peer.url, "--receipt", file)
    assert said.status == 0
    assert file.read_text() == '{\n  "format": "made up"\n}\n'
    assert [line for line in said.err.splitlines() if line.startswith("receipt: ")] == [
        "receipt: pending",
        "receipt: certified, height 7, 3 signers",
        "receipt: logged, height 7, 3 signers",
        "receipt: anchored, height 7, 3 signers",
    ]


def test_with_receipt_it_fails_when_the_anchor_does_not_come(nsllm: Callable, peer: Any, tmp_path: Path) -> None:
    peer.levels = ["certified"]
    said = nsllm("ask", "Why?", "--api", peer.url, "--receipt", tmp_path / "r.json", "--timeout", 0)
    assert said.status == 1
    assert "is certified after 0 s, not yet anchored" in said.err
    assert not (tmp_path / "r.json").exists()


def test_with_receipt_it_waits_for_nothing_that_will_not_come(nsllm: Callable, peer: Any, tmp_path: Path) -> None:
    peer.levels, peer.final = ["certified"], True
    said = nsllm("ask", "Why?", "--api", peer.url, "--receipt", tmp_path / "r.json")
    assert said.status == 1
    assert "stays certified: the peer does not have the record's block" in said.err
    said = nsllm("receipt", "chatcmpl-1", "--api", peer.url, "--wait", "anchored")
    assert said.status == 1
    assert "the receipt stays certified" in said.err
    assert nsllm("receipt", "chatcmpl-1", "--api", peer.url).status == 0


def test_with_receipt_it_fails_when_there_will_be_none(nsllm: Callable, peer: Any, tmp_path: Path) -> None:
    peer.levels, peer.detail, peer.publication = ["none"], "the request is private", "private"
    said = nsllm("ask", "Why?", "--api", peer.url, "--receipt", tmp_path / "r.json")
    assert said.status == 1
    assert "there is no receipt: the request is private" in said.err


def test_an_unpublished_answer_says_why_and_waits_for_nothing(nsllm: Callable, peer: Any) -> None:
    peer.publication, peer.detail = "unpublished", "coherence 0.1 below 0.3"
    said = nsllm("ask", "Why?", "--api", peer.url)
    assert said.status == 0
    assert "unpublished: coherence 0.1 below 0.3" in said.err
    assert not [path for _, path, _, _ in peer.requests if "receipts" in path]


def test_the_peers_refusal_is_the_message(nsllm: Callable, peer: Any) -> None:
    peer.publication = "overloaded"
    said = nsllm("ask", "Why?", "--api", peer.url)
    assert (said.status, said.err) == (1, "error: 32 generations wait already\n")


def test_an_error_in_mid_stream_fails(nsllm: Callable, peer: Any) -> None:
    peer.error_in_stream = True
    said = nsllm("ask", "Why?", "--api", peer.url)
    assert said.status == 1
    assert "the model worker died" in said.err


def test_receipt_prints_it_unchanged(nsllm: Callable, peer: Any) -> None:
    peer.levels = ["anchored"]
    assert nsllm("receipt", "chatcmpl-1", "--api", peer.url).out == '{\n  "format": "made up"\n}\n'
    said = nsllm("receipt", "chatcmpl-1", "--api", peer.url, "--json").json()
    assert (said["state"], said["receipt"], said["anchor_tx"]) == ("anchored", {"format": "made up"}, "0xfeed")


def test_receipt_waits_for_a_level(nsllm: Callable, peer: Any) -> None:
    peer.levels = ["pending", "certified", "anchored"]
    assert nsllm("receipt", "chatcmpl-1", "--api", peer.url, "--wait", "anchored").status == 0
    assert next(path for _, path, _, _ in peer.requests).startswith("/v1/receipts/chatcmpl-1?wait=anchored&timeout_s=")


@pytest.mark.parametrize(
    ("levels", "args", "says"),
    [
        (["pending"], [], "is pending: waits for validators"),
        (["none"], [], "there is no receipt: expired"),
        (["certified"], ["--wait", "logged", "--timeout", "0"], "is certified after 0 s, not yet logged"),
    ],
)
def test_receipt_fails(nsllm: Callable, peer: Any, levels: list[str], args: list[str], says: str) -> None:
    peer.levels, peer.detail = levels, "expired"
    said = nsllm("receipt", "chatcmpl-1", "--api", peer.url, *args)
    assert said.status == 1
    assert says in said.err
    assert said.out == ""


def test_an_unknown_receipt(nsllm: Callable, peer: Any) -> None:
    said = nsllm("receipt", "chatcmpl-2", "--api", peer.url)
    assert said.status == 1
    assert "no such thing: /v1/receipts/chatcmpl-2" in said.err


def test_passages_that_were_read_are_cited(nsllm: Callable, peer: Any) -> None:
    cited = {
        "number": 1,
        "source": "hand[book].md",
        "span": [10, 90],
        "chunk": "0x02",
        "document": "0x01",
        "member": "0x" + "ab" * 20,
    }
    peer.evidence = [cited]
    said = nsllm("ask", "What?", "--api", peer.url, "--retrieve", "3")
    assert peer.body()["retrieve"] == 3
    assert "[1] hand[book].md, characters 10 to 90, shared by 0xababababab…" in said.err
    peer.requests.clear()
    assert nsllm("ask", "What?", "--api", peer.url, "--retrieve", "5", "--json").json()["evidence"] == [cited]
    assert peer.body()["retrieve"] == 5
    peer.requests.clear()
    nsllm("ask", "What?", "--api", peer.url)
    assert "retrieve" not in peer.body()
