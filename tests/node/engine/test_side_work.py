"""Judging jobs share passes where that changes no bit, and one that fails costs no other."""

from __future__ import annotations

import pytest

from nsllm.node.engine.protocol import Judge, Refused
from nsllm.node.engine.side_work import CHUNK_TOKENS, EASY_TOKENS, SideWork
from nsllm.record import Message

ANSWERS = ["an answer", "another one, of more tokens than the first", "a third", "the last of all"]


def question(text):
    return (Message(role="user", content=text),)


def jobs():
    return [Judge(job, ((question(f"{job}?"), text),)) for job, text in enumerate(ANSWERS)]


class Passes:
    """Passes of a backend: how many sequences each reads, and how many tokens; some fail."""

    def __init__(self, backend, monkeypatch, fails=lambda _reads: False):
        self.sequences, self.tokens = [], []
        self._read, self._fails = backend.read, fails
        monkeypatch.setattr(backend, "read", self)

    def __call__(self, reads):
        self.sequences.append(len(reads))
        self.tokens.append(sum(len(read.token_ids) for read in reads))
        if self._fails(reads):
            self._read(reads[:-1]) if len(reads) > 1 else None  # what the caches hold is uncertain
            raise MemoryError("no memory")
        return self._read(reads)


def done(backend, messages):
    """Replies by job, all asked at once."""
    said = []
    side = SideWork(backend, said.append)
    for message in messages:
        side.judge(message)
    while side.busy:
        side.step()
    assert backend.room()[0] == 0
    return {reply.job: reply for reply in said}


def test_several_jobs_fill_a_pass_and_get_what_each_gets_alone(fast, monkeypatch):
    alone = [done(fast, [message])[message.job] for message in jobs()]
    passes = Passes(fast, monkeypatch)
    assert [reply for _, reply in sorted(done(fast, jobs()).items())] == alone
    assert max(passes.sequences) > 1
    assert max(passes.tokens) <= CHUNK_TOKENS + EASY_TOKENS
    assert all(tokens >= CHUNK_TOKENS for tokens in passes.tokens[:-1])  # nothing is left out while others wait


def test_where_company_costs_bits_each_job_is_read_alone(general, monkeypatch):
    passes = Passes(general, monkeypatch)
    assert len(done(general, jobs())) == len(ANSWERS)
    assert set(passes.sequences) == {1}


@pytest.mark.parametrize(("more", "passes"), [(EASY_TOKENS, 1), (EASY_TOKENS + 1, 2)])
def test_what_little_is_left_of_a_job_costs_no_pass_of_its_own(fast, monkeypatch, more, passes):
    prompt = fast.chat_tokens(question("0?"))
    cache = fast.open(prompt, len(prompt), side=True)
    known = cache.read
    fast.close(cache)
    counted = Passes(fast, monkeypatch)
    text = "x" * (CHUNK_TOKENS + more - (len(prompt) - known) + 1)  # a token a letter, and the last one is not read
    assert len(fast.tokens(text)) == len(text)
    done(fast, [Judge(1, ((question("0?"), text),))])
    assert len(counted.tokens) == passes


def test_a_pass_over_several_jobs_that_fails_costs_none_of_them(fast, monkeypatch):
    expected = done(fast, jobs())
    passes = Passes(fast, monkeypatch, lambda reads: len(reads) > 1)
    assert done(fast, jobs()) == expected
    assert 0 < sum(count > 1 for count in passes.sequences) <= len(ANSWERS) / 2  # each is read alone from then on


def test_the_job_that_fails_alone_ends_and_the_others_go_on(fast, monkeypatch):
    expected = done(fast, jobs())
    (bad,) = fast.tokens("z")
    Passes(fast, monkeypatch, lambda reads: any(bad in read.token_ids for read in reads))
    found = done(fast, [*jobs(), Judge(9, ((question("9?"), "zz"),))])
    refused = found.pop(9)
    assert isinstance(refused, Refused)
    assert (refused.kind, found) == ("failed", expected)
