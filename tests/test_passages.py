"""Passages stand in the prompt as everybody would put them there, and a record cites nothing else."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from records import small_record

from nsllm.crypto import MemberKey
from nsllm.errors import EncodingError, SignatureError
from nsllm.ids import ZERO_DIGEST, NetworkId
from nsllm.passages import HEAD, check_evidence, framed, texts, with_passages
from nsllm.record import MAX_TEXT_CHARS, Chunk, Message, sign_chunk

NETWORK = NetworkId(b"\x07" * 32)
KEY = MemberKey(b"\1" * 32)
ASKED = (Message(role="user", content="When?"),)


def chunk(number, text):
    return sign_chunk(
        KEY,
        Chunk(
            network=NETWORK,
            member=KEY.address,
            document=ZERO_DIGEST,
            source=f"{number}.txt",
            number=number,
            start=0,
            end=len(text),
            text=text,
            encoder=ZERO_DIGEST,
            embedding=bytes(384),
            created_ms=1,
        ),
    )


def record(messages, evidence):
    return small_record(KEY, messages, network=NETWORK, text="In 1871.", evidence=evidence)


CITED = (chunk(0, "It was built in 1871."), chunk(1, "Of granite."))
SAYS = f"{HEAD}\n\n[1] 0.txt\nIt was built in 1871.\n\n[2] 1.txt\nOf granite."


def test_passages_end_the_system_message_and_the_question_stays_alone() -> None:
    assert framed(CITED) == SAYS
    assert with_passages(ASKED, ()) == ASKED
    assert with_passages(ASKED, CITED) == (Message(role="system", content=SAYS), *ASKED)
    polite = Message(role="system", content="Be polite.")
    assert with_passages((polite, *ASKED), CITED)[0].content == f"Be polite.\n\n{SAYS}"
    assert record(with_passages(ASKED, CITED), CITED).request.question() == "When?"
    assert texts(CITED) == ("It was built in 1871.", "Of granite.")
    with pytest.raises(ValueError, match="the limit is"):
        with_passages((replace(polite, content="x" * MAX_TEXT_CHARS), *ASKED), CITED)


@pytest.mark.parametrize("messages", [ASKED, (Message(role="system", content="Be polite."), *ASKED)])
def test_what_was_read_may_be_cited(messages) -> None:
    check_evidence(record(with_passages(messages, CITED), CITED), NETWORK)
    check_evidence(record(messages, ()), NETWORK)


def test_nothing_else_may_be_cited() -> None:
    shown = with_passages(ASKED, CITED)
    for evidence in (CITED[:1], CITED[::-1], (*CITED, chunk(2, "Not shown."))):
        with pytest.raises(EncodingError, match="not what its model was shown"):
            check_evidence(record(shown, evidence), NETWORK)
    with pytest.raises(EncodingError, match="not what its model was shown"):
        check_evidence(record(ASKED, CITED), NETWORK)
    with pytest.raises(EncodingError, match="twice"):
        check_evidence(record(with_passages(ASKED, (CITED[0],) * 2), (CITED[0],) * 2), NETWORK)
    forged = replace(CITED[0], chunk=replace(CITED[0].chunk, text="It was built in 1999."))
    with pytest.raises(SignatureError):
        check_evidence(record(with_passages(ASKED, (forged,)), (forged,)), NETWORK)
