"""From a conversation with attachments to what the model is asked."""

from __future__ import annotations

import hashlib

import pytest

from nsllm.node.attachments.attached import PLACE, Attached
from nsllm.node.attachments.attend import SEEN_BYTES, Note, attend
from nsllm.node.attachments.port import Description, TablesOnly
from nsllm.node.errors import InvalidRequestError
from nsllm.record import Message

PICTURE = Attached("image", "PNG", b"picture", "messages[0].content[0].image_url")
OTHER = Attached("image", "JPEG", b"other", "messages[0].content[1].image_url")
TABLE = Attached("table", "CSV", b"a,b\n1,2\n", "messages[0].content[2].file.file_data", "sums.csv")


class Saying:
    """Describes everything by its digest."""

    def __init__(self) -> None:
        self.budgets: list[int] = []

    async def describe(self, attached: Attached) -> Description:
        if attached.kind == "table":
            return await TablesOnly().describe(attached)
        return Description(f"it is {attached.data.decode()}", "ocr+labels")

    async def prepare(self, attached: Attached, max_bytes: int) -> bytes:
        self.budgets.append(max_bytes)
        return b"seen " + attached.data


def user(content: str) -> Message:
    return Message(role="user", content=content)


async def test_without_attachments_nothing_changes() -> None:
    messages = (user(f"what is {PLACE}?"),)
    attended = await attend(messages, (), Saying(), sees=False)
    assert (attended.messages, attended.images, attended.notes) == (messages, (), ())


async def test_a_model_that_reads_gets_words_before_the_question() -> None:
    messages = (user(f"Compare{PLACE}with{PLACE}"), user(f"{PLACE}Sum?"))
    attended = await attend(messages, (PICTURE, OTHER, TABLE), Saying(), sees=False)
    assert [message.content for message in attended.messages] == [
        "[Image 1: it is picture]\n\n[Image 2: it is other]\n\nCompare\nwith",
        (
            "[Data 1, sums.csv: 1 row, 2 columns.\na: integer, 1 to 1, mean 1, sum 1\n"
            "b: integer, 2 to 2, mean 2, sum 2\nAll rows:\na,b\n1,2]\n\nSum?"
        ),
    ]
    assert attended.images == ()
    assert attended.notes == (
        Note(PICTURE.digest, "image", "ocr+labels", ""),
        Note(OTHER.digest, "image", "ocr+labels", ""),
        Note(TABLE.digest, "table", "table", "sums.csv"),
    )
    assert attended.digests == (PICTURE.digest, OTHER.digest, TABLE.digest)


async def test_a_model_that_sees_gets_pictures_in_their_places_and_tables_in_words() -> None:
    describer = Saying()
    messages = (user(f"Look: {PLACE} and {PLACE}{PLACE}what now?"),)
    attended = await attend(messages, (PICTURE, TABLE, OTHER), describer, sees=True)
    (message,) = attended.messages
    head, _, question = message.content.rpartition("\n\n")
    assert head.startswith("[Data 1, sums.csv: ")
    assert question == f"Look: {PLACE} and {PLACE}what now?"
    assert attended.images == (b"seen picture", b"seen other")
    assert [note.how for note in attended.notes] == ["native", "table", "native"]
    assert describer.budgets == [SEEN_BYTES // 2] * 2


async def test_a_picture_alone_is_a_message() -> None:
    attended = await attend((user(PLACE),), (PICTURE,), Saying(), sees=False)
    assert attended.messages[0].content == "[Image 1: it is picture]"


@pytest.mark.parametrize("content", ["", PLACE * 2])
async def test_places_and_attachments_must_agree(content: str) -> None:
    with pytest.raises(InvalidRequestError, match="1 attachments for"):
        await attend((user(content),), (PICTURE,), Saying(), sees=False)


async def test_a_message_that_grows_too_long_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="100000") as caught:
        await attend((user(PLACE + "x" * 99_990),), (PICTURE,), Saying(), sees=False)
    assert caught.value.param == "messages"


async def test_a_fault_in_a_table_names_its_field() -> None:
    bad = Attached("table", "CSV", b"a,b\n1\n", "messages[0].content[2].file.file_data")
    with pytest.raises(InvalidRequestError, match="line 2") as caught:
        await attend((user(PLACE),), (bad,), TablesOnly(), sees=False)
    assert caught.value.param == bad.at


async def test_a_simulation_looks_at_no_pictures() -> None:
    for sees in (False, True):
        with pytest.raises(InvalidRequestError, match="pictures") as caught:
            await attend((user(PLACE),), (PICTURE,), TablesOnly(), sees=sees)
        assert caught.value.param == PICTURE.at


def test_the_digest_is_the_files_and_its_bytes_are_not_shown() -> None:
    assert PICTURE.digest == hashlib.sha256(b"picture").digest()
    assert "b'picture'" not in repr(PICTURE)
