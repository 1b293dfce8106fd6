"""Content parts: what is taken, and the 400 that names the part at fault."""

from __future__ import annotations

import base64
import hashlib
import io
import json

import pytest
from PIL import Image

from nsllm.node.api.chat_body import ChatBody, chat_commands
from nsllm.node.api.openai_errors import ApiError
from nsllm.node.api.parts import MAX_PARTS, PartsReader
from nsllm.node.api.requests import decode
from nsllm.node.attachments.attached import MAX_ATTACHED, MAX_IMAGE_BYTES, MAX_TABLE_BYTES, MAX_TOTAL_BYTES, PLACE
from nsllm.node.attachments.attend import Note
from nsllm.node.errors import InvalidRequestError

AT = "messages[1].content"


def file_of(form: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(out, form)
    return out.getvalue()


PNG = file_of("PNG")


def url(data: bytes, media: str = "image/png") -> str:
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def image(data: bytes = PNG, media: str = "image/png", **more) -> dict:
    return {"type": "image_url", "image_url": {"url": url(data, media), **more}}


def file(data: bytes = b"a,b\n1,2\n", media: str = "text/csv", **more) -> dict:
    return {"type": "file", "file": {"file_data": url(data, media), **more}}


def text(content: str) -> dict:
    return {"type": "text", "text": content}


@pytest.mark.parametrize(
    ("form", "media"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("JPEG", "image/jpg"), ("WebP", "image/webp")]
)
def test_pictures_of_each_format_are_taken(form, media):
    reader = PartsReader()
    data = file_of(form)
    assert reader.read([image(data, media)], AT) == PLACE
    (one,) = reader.attached
    assert (one.kind, one.format, one.data, one.name) == ("image", form, data, "")
    assert one.digest == hashlib.sha256(data).digest()
    assert one.at == "messages[1].content[0].image_url"


@pytest.mark.parametrize(
    "part",
    [
        image(),
        image(detail="low"),
        image(detail=None),
        {"type": "image_url", "image_url": url(PNG)},
        {"type": "input_image", "image_url": url(PNG), "detail": "auto"},
        {"type": "image_url", "image_url": {"url": url(PNG).replace("data:image/png", "DATA:Image/PNG;name=x.png")}},
    ],
)
def test_every_spelling_of_a_picture_is_the_same_picture(part):
    reader = PartsReader()
    assert reader.read([part], AT) == PLACE
    assert reader.attached[0].data == PNG


@pytest.mark.parametrize(
    ("part", "form", "name"),
    [
        (file(filename="sales.csv"), "CSV", "sales.csv"),
        (file(b"{}", "application/json"), "JSON", ""),
        (file(b"{}", "application/json;charset=utf-8"), "JSON", ""),
        (file(filename=" odd \n name.csv"), "CSV", "odd name.csv"),
        ({"type": "input_file", "filename": "a.json", "file_data": url(b"[]", "application/json")}, "JSON", "a.json"),
        (file(PNG, "image/png", filename="scan.png"), "PNG", "scan.png"),
    ],
)
def test_files_are_taken(part, form, name):
    reader = PartsReader()
    assert reader.read([part], AT) == PLACE
    assert (reader.attached[0].format, reader.attached[0].name) == (form, name)


def test_text_and_places_stand_in_the_order_of_the_parts():
    reader = PartsReader()
    said = reader.read([text("one"), text("two"), image(), text("three"), file(), image(), text("four")], AT)
    assert said == f"one\ntwo{PLACE}three{PLACE}{PLACE}four"
    assert [one.kind for one in reader.attached] == ["image", "table", "image"]
    assert [one.at for one in reader.attached] == [
        f"{AT}[2].image_url",
        f"{AT}[4].file.file_data",
        f"{AT}[5].image_url",
    ]


def test_a_part_of_plain_text_changes_nothing():
    reader = PartsReader()
    assert reader.read([text("Hello")], AT) == "Hello"
    reader.check(["anything, even " + PLACE])  # nothing is attached: the character means nothing


def test_a_place_of_the_callers_own_is_refused():
    reader = PartsReader()
    content = reader.read([image(), text("see " + PLACE)], AT)
    with pytest.raises(ApiError, match=r"U\+FFFC") as caught:
        reader.check([content])
    assert caught.value.param == "messages"


WHERE = f"{AT}[0].image_url"
REFUSED = {
    "http": ({"type": "image_url", "image_url": {"url": "https://example.com/f.png"}}, WHERE, "fetches nothing"),
    "HTTP": ({"type": "image_url", "image_url": {"url": "HTTP://169.254.169.254/latest"}}, WHERE, "fetches nothing"),
    "a file URL": ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, WHERE, "not a data URL"),
    "no base64": ({"type": "image_url", "image_url": {"url": "data:image/png,abc"}}, WHERE, "not base64"),
    "broken base64": ({"type": "image_url", "image_url": {"url": "data:image/png;base64,!!!"}}, WHERE, "broken"),
    "cut base64": ({"type": "image_url", "image_url": {"url": url(PNG)[:-3]}}, WHERE, "broken"),
    "not ASCII": ({"type": "image_url", "image_url": {"url": "data:image/png;base64,ä"}}, WHERE, "broken"),
    "empty": ({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}, WHERE, "empty"),
    "a GIF": (image(b"GIF89a", "image/gif"), WHERE, "'image/gif' is not taken"),
    "an SVG": (image(b"<svg/>", "image/svg+xml"), WHERE, "'image/svg+xml' is not taken"),
    "no type": (image(PNG, ""), WHERE, "no media type"),
    "a JPEG called PNG": (image(file_of("JPEG")), WHERE, "declared as image/png, but the file is JPEG"),
    "text called PNG": (image(b"hello"), WHERE, "no PNG, JPEG or WebP picture"),
    "a PNG called CSV": (file(PNG), f"{AT}[0].file.file_data", "declared as text/csv, but the file is PNG"),
    "a table as a picture": (image(b"a,b\n", "text/csv"), WHERE, "send it as a part of type 'file'"),
    "a PDF": (file(b"%PDF-1.7", "application/pdf"), f"{AT}[0].file.file_data", "'application/pdf' is not taken"),
    "a file id": ({"type": "file", "file": {"file_id": "file-1"}}, f"{AT}[0].file", "stores and fetches no files"),
    "a file URL field": ({"type": "input_file", "file_url": "https://x/y.csv"}, f"{AT}[0]", "fetches no files"),
    "no file data": ({"type": "file", "file": {}}, f"{AT}[0].file.file_data", "string 'file_data'"),
    "no file object": ({"type": "file", "file": "x"}, f"{AT}[0].file", "object 'file'"),
    "a long name": (file(filename="x" * 129), f"{AT}[0].file.filename", "128"),
    "a bad name": (file(filename="a\x07.csv"), f"{AT}[0].file.filename", "printable"),
    "no url": ({"type": "image_url", "image_url": {}}, f"{WHERE}.url", "string 'url'"),
    "a url that is a number": ({"type": "image_url", "image_url": 5}, WHERE, "string 'image_url'"),
    "an unknown field": ({"type": "image_url", "image_url": {"url": url(PNG), "x": 1}}, f"{WHERE}.x", "unknown field"),
    "an unknown field beside": ({**image(), "y": 1}, f"{AT}[0].y", "unknown field"),
    "an odd detail": (image(detail="ultra"), WHERE, "'detail' is 'ultra'"),
    "audio": ({"type": "input_audio", "input_audio": {}}, f"{AT}[0]", "'input_audio' are not supported"),
    "no type at all": ({"text": "x"}, f"{AT}[0]", "'None' are not supported"),
    "a part that is no object": ("text", f"{AT}[0]", "must be an object"),
    "text that is none": ({"type": "text", "text": None}, f"{AT}[0].text", "string 'text'"),
    "a picture too large": (image(PNG + b"\0" * MAX_IMAGE_BYTES), WHERE, "larger than 6,291,456 bytes"),
    "a table too large": (file(b"a" * (MAX_TABLE_BYTES + 1)), f"{AT}[0].file.file_data", "larger than 1,048,576 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taken_is_refused_by_name(case):
    part, param, says = REFUSED[case]
    with pytest.raises(ApiError) as caught:
        PartsReader().read([part], AT)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert says in caught.value.message
    assert base64.b64encode(PNG).decode()[:20] not in caught.value.message


def test_too_many_attachments_are_refused_over_all_messages():
    reader = PartsReader()
    for index in range(MAX_ATTACHED):
        reader.read([image()], f"messages[{index}].content")
    with pytest.raises(ApiError, match="more than 16 attachments") as caught:
        reader.read([text("x"), image()], AT)
    assert caught.value.param == f"{AT}[1].image_url"


def test_too_many_bytes_are_refused_over_all_messages():
    reader = PartsReader()
    half = PNG + b"\0" * (MAX_TOTAL_BYTES // 2)
    reader.read([image(half)], AT)
    with pytest.raises(ApiError, match="together have more than 6,291,456 bytes"):
        reader.read([image(half)], AT)


def test_too_many_parts_are_refused():
    with pytest.raises(ApiError, match="65 content parts") as caught:
        PartsReader().read([text("x")] * (MAX_PARTS + 1), AT)
    assert caught.value.param == AT


def commands(*messages: dict):
    return chat_commands(decode(json.dumps({"model": "m", "messages": messages}).encode(), ChatBody))


def test_the_command_carries_what_is_attached():
    (command,) = commands(
        {"role": "system", "content": [text("Be brief.")]},
        {"role": "user", "content": [image(), text("What?")]},
    )
    assert [message.content for message in command.messages] == ["Be brief.", f"{PLACE}What?"]
    assert [one.data for one in command.attached] == [PNG]


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_only_users_attach(role):
    with pytest.raises(ApiError, match="user messages only") as caught:
        commands({"role": role, "content": [image()]}, {"role": "user", "content": "x"})
    assert caught.value.param == "messages[0].content[0]"


NOTE = Note(hashlib.sha256(PNG).digest(), "image", "ocr+labels", "f.png")
TOLD = [{"digest": "0x" + hashlib.sha256(PNG).hexdigest(), "kind": "image", "how": "ocr+labels", "name": "f.png"}]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_reply_says_how_each_attachment_was_used(running, stream) -> None:
    running.service.notes = (NOTE,)
    body = {
        "model": "smollm2-135m-instruct",
        "stream": stream,
        "messages": [{"role": "user", "content": [image(), text("What?")]}],
    }
    answer = await running.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    if stream:
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        assert [chunk["nsllm"]["attachments"] for chunk in chunks if "nsllm" in chunk] == [TOLD]
    else:
        assert answer.json()["nsllm"]["attachments"] == TOLD
    assert running.service.commands[0].attached[0].data == PNG


async def test_the_largest_attachments_fit_into_a_body_and_more_do_not(running) -> None:
    largest = PNG + b"\0" * (MAX_TOTAL_BYTES - len(PNG))
    body = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": [image(largest)]}]}
    answer = await running.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert running.service.commands[0].attached[0].data == largest


async def test_an_error_of_the_peer_names_the_part(running) -> None:
    where = "messages[0].content[0].image_url"
    running.service.fail_entering = InvalidRequestError("the picture is damaged", param=where)
    body = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": [image()]}]}
    answer = await running.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == where
