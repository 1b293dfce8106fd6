"""Honest answers are read again without strain, on every path and in any batch; what was changed afterwards shows."""

from __future__ import annotations

import dataclasses

import claiming
import msgspec
import pytest
from claiming import WARM

from nsllm.governance.computation import computation_ppm
from nsllm.node.engine.fast.backend import FastBackend
from nsllm.node.engine.port import EngineRequest
from nsllm.node.engine.protocol import Cancel, Generate, Judge, Refused, Retrace, Retraced
from nsllm.node.engine.scheduler import Scheduler
from nsllm.node.engine.tiny import build_tiny_models
from nsllm.record import Guide, Message, Rendering, Sampling, Tool

KINDS = {
    "warm": {},
    "greedy": {"temperature_micro": 0},
    "unlimited": {"top_p_micro": 1_000_000},
    "top-k": {"top_k": 7},
    "min-p": {"min_p_micro": 100_000},
    "penalties": {"repetition_penalty_micro": 1_300_000, "presence_penalty_micro": 200_000},
    "bias": {"logit_bias": ((70, 3_000_000),)},
    "stops": {"stop": ("B",), "logit_bias": ((37, 3_000_000),)},
    "stop tokens": {"stop_token_ids": (37, 99_999), "logit_bias": ((37, 3_000_000),)},
    "stop tokens wait": {"stop_token_ids": (37,), "logit_bias": ((37, 9_000_000),), "min_tokens": 12},
    "bad words": {"bad_words": ("A", "B", "e "), "logit_bias": ((37, 3_000_000),)},
    "least": {"min_tokens": 12},
    "cut": {"truncate_prompt_tokens": 5, "repetition_penalty_micro": 1_300_000},
}


def claims(backend, kinds, *, guide=None, max_tokens=24):
    """What a peer says of answers that it writes all at once."""
    said = []
    return claiming.claims(Scheduler(backend, said.append), said, kinds, guide=guide, max_tokens=max_tokens)


def reply(backend, message):
    said = []
    scheduler = Scheduler(backend, said.append)
    scheduler.handle(message)
    while scheduler.busy:
        scheduler.side()
    (only,) = said
    return only


def trace(backend, claim):
    found = reply(backend, Retrace(1, claim, Sampling()))
    assert isinstance(found, Retraced), found
    return found.trace


def edited(backend, claim, token_ids, **changes):
    """The claim with other tokens and the text that they spell."""
    decoder = backend.spelling.decoder()
    shown = [token for token in token_ids if token not in backend.end_token_ids]
    text = "".join(decoder.push(token) for token in shown) + decoder.finish()
    return dataclasses.replace(claim, token_ids=tuple(token_ids), text=text, **changes)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, kernels):
    """A model of the same shape, seeded otherwise."""
    paths = build_tiny_models(tmp_path_factory.mktemp("stranger"), seed=9)
    return FastBackend(paths.text, paths.encoder, kernels, "float32", threads=1, cache_mb=1)


@pytest.fixture(scope="module")
def quantized(tiny, kernels):
    """The tiny model in int8."""
    return FastBackend(tiny.text, tiny.encoder, kernels, "int8", threads=1, cache_mb=1)


def test_honest_answers_of_any_sampling_pass_on_both_paths(general, fast):
    together = claims(fast, KINDS.values())
    alone = [claims(fast, [{**changes, "seed": 11 + at}])[0] for at, changes in enumerate(KINDS.values())]
    for one in [*together, *alone, *claims(general, list(KINDS.values())[:3])]:
        for backend in (fast, general):
            found = trace(backend, one)
            assert found.fault is None
            assert found.tokens == len(one.token_ids)
            assert found.worst_strain <= 0.0625
            assert computation_ppm(found) > 900_000
            assert computation_ppm(dataclasses.replace(found, exact=True)) > 900_000
    assert any(one.finish_reason == "stop" for one in together)


def test_what_is_read_beside_an_answer_is_what_is_read_for_itself(backend):
    (one,) = claims(backend, [{"max_tokens": 40, "logit_bias": ((70, 20_000_000),)}])  # a text that reads as written
    beside = (Message(role="user", content="Say something."),)
    alone = reply(backend, Judge(1, ((beside, one.text),), most_tokens=32)).rows[0]
    found = reply(backend, Retrace(2, one, Sampling(), beside)).trace
    assert found.beside is not None
    assert (found.beside.mean_logprob, found.beside.tokens, found.beside.head_logprob) == pytest.approx(alone)
    assert dataclasses.replace(found, beside=None) == trace(backend, one)


def test_nothing_is_read_beside_what_is_no_text(fast):
    (one,) = claims(fast, [{"logit_bias": ((70, 20_000_000),)}])
    truncated = msgspec.structs.replace(one.request, tools=(Tool(name="t", description="", parameters="{}"),))
    beside = (Message(role="user", content="Say something."),)
    assert reply(fast, Retrace(2, dataclasses.replace(one, request=truncated), Sampling(), beside)).trace.beside is None


def test_two_sequences_side_by_side_wait_for_room_one_after_the_other(fast, monkeypatch):
    (one,) = claims(fast, [{"logit_bias": ((70, 20_000_000),)}])
    beside = (Message(role="user", content="Say something."),)
    expected = reply(fast, Retrace(1, one, Sampling(), beside)).trace
    assert expected.beside is not None
    held, take, give = [], fast.open, fast.close

    def open_one(*asked, **named):
        if held:
            return None
        held.append(take(*asked, **named))
        return held[0]

    def close(cache):
        held.remove(cache)
        give(cache)

    monkeypatch.setattr(fast, "open", open_one)
    monkeypatch.setattr(fast, "close", close)
    assert reply(fast, Retrace(1, one, Sampling(), beside)).trace == expected
    assert not held


def test_an_answer_passes_in_other_numbers(fast, quantized):
    for reader, writer in ((fast, quantized), (quantized, fast)):
        for one in claims(writer, [{}, {"temperature_micro": 0}] * 4):
            found = trace(reader, one)
            assert found.fault is None
            assert found.worst_strain <= 1
            assert computation_ppm(found) > 500_000


def test_a_stranger_of_the_same_shape_fails(backend, stranger):
    for one in claims(stranger, [{}, {"top_p_micro": 1_000_000}, {"temperature_micro": 0}]):
        assert computation_ppm(trace(backend, one)) < 100_000


def test_another_temperature_or_seed_fails(backend):
    one, two = claims(backend, [{}, {"temperature_micro": 2_000_000}])
    assert computation_ppm(trace(backend, one)) > 900_000
    hot = dataclasses.replace(two, sampling=msgspec.structs.replace(two.sampling, temperature_micro=800_000))
    hot = dataclasses.replace(hot, request=msgspec.structs.replace(hot.request, sampling=hot.sampling))
    assert computation_ppm(trace(backend, hot)) < 100_000
    sown = dataclasses.replace(one, sampling=msgspec.structs.replace(one.sampling, seed=99))
    sown = dataclasses.replace(sown, request=msgspec.structs.replace(one.request, sampling=sown.sampling))
    assert computation_ppm(trace(backend, sown)) < 100_000


def test_every_single_token_that_is_exchanged_shows(fast):
    (one,) = claims(fast, [{"temperature_micro": 300_000}], max_tokens=12)
    for at in range(len(one.token_ids) - 1):
        new = 80 + (one.token_ids[at] - 80 + 1) % 20
        found = trace(fast, edited(fast, one, (*one.token_ids[:at], new, *one.token_ids[at + 1 :])))
        assert computation_ppm(dataclasses.replace(found, exact=True)) < 500_000


def test_what_cannot_be_is_found_before_anything_is_read(backend, monkeypatch):
    (one,) = claims(backend, [{"max_tokens": 12}])
    ended = dataclasses.replace(one, token_ids=(*one.token_ids[:6], 3))
    sampling, request = one.sampling, one.request
    wrong = {
        "prompt": [
            dataclasses.replace(one, prompt_token_ids=one.prompt_token_ids[1:]),
            dataclasses.replace(
                one,
                request=msgspec.structs.replace(request, messages=(Message(role="user", content="something else"),)),
            ),
        ],
        "sampling": [
            dataclasses.replace(one, sampling=msgspec.structs.replace(sampling, temperature_micro=700_000)),
            dataclasses.replace(one, sampling=msgspec.structs.replace(sampling, max_tokens=13)),
            dataclasses.replace(one, sampling=msgspec.structs.replace(sampling, stop_token_ids=(one.token_ids[-1],))),
            dataclasses.replace(one, sampling=msgspec.structs.replace(sampling, logit_bias=((70, 1_000_000),))),
            dataclasses.replace(one, sampling=msgspec.structs.replace(sampling, stop=("x",))),
            dataclasses.replace(one, sampling=msgspec.structs.replace(sampling, presence_penalty_micro=100_000)),
        ],
        "tokens": [
            dataclasses.replace(one, token_ids=()),
            dataclasses.replace(one, token_ids=(2**31 - 1, *one.token_ids[1:])),
            edited(backend, one, one.token_ids * 2),
            dataclasses.replace(one, token_ids=one.token_ids * 30),
        ],
        "text": [dataclasses.replace(one, text=one.text + "!"), dataclasses.replace(one, text="")],
        "end": [
            edited(backend, one, one.token_ids[:6]),
            edited(backend, one, one.token_ids[:6], finish_reason="stop"),
            edited(backend, ended, (*ended.token_ids, 70)),
            edited(backend, ended, ended.token_ids, finish_reason="length"),
        ],
    }
    monkeypatch.setattr(backend, "forward", None)
    for fault, made in wrong.items():
        for claim in made:
            found = trace(backend, claim)
            assert (found.fault, found.tokens, computation_ppm(found)) == (fault, 0, 0)


def test_guided_answers_pass_and_what_their_guide_forbids_fails(backend):
    guide = Guide(kind="regex", text="[0-9]{4,8}")
    (one,) = claims(backend, [{}], guide=guide)
    assert one.text.isdigit()
    found = trace(backend, one)
    assert (found.fault, found.worst_strain) == (None, 0)
    letter = next(token for token in range(250) if backend.spelling.token_bytes(token) == b"x")
    spoilt = trace(backend, edited(backend, one, (letter, *one.token_ids[1:])))
    assert computation_ppm(spoilt) == 0


def test_a_word_that_was_ruled_out_fails(backend):
    (one,) = claims(backend, [{"temperature_micro": 0}])
    at = next(at for at, token in enumerate(one.token_ids) if backend.spelling.token_bytes(token).isalpha())
    word = backend.spelling.token_bytes(one.token_ids[at]).decode()
    asked = msgspec.structs.replace(one.sampling, bad_words=(word,))
    claim = dataclasses.replace(one, sampling=asked, request=msgspec.structs.replace(one.request, sampling=asked))
    found = trace(backend, claim)
    assert found.fault is None
    assert computation_ppm(dataclasses.replace(found, exact=True)) < 500_000
    (kept,) = claims(backend, [{"temperature_micro": 0, "bad_words": (word,)}])
    assert word not in kept.text
    assert computation_ppm(trace(backend, kept)) > 900_000


def test_one_reading_gives_the_likelihood_too(backend):
    for one in claims(backend, [{}, {"stop": ("e",)}]):
        [(mean, tokens, head)] = reply(backend, Judge(1, ((one.request.messages, one.text),), 512)).rows
        found = trace(backend, one).likelihood
        if found is None:  # the text reads otherwise than it was written
            assert backend.tokens(one.text) != list(one.token_ids[: len(backend.tokens(one.text))])
            continue
        assert (found.tokens, found.mean_logprob, found.head_logprob) == (
            tokens,
            pytest.approx(mean),
            pytest.approx(head),
        )


def test_what_is_rendered_in_a_way_of_its_own_is_judged_apart(backend):
    (one,) = claims(backend, [{}], guide=Guide(kind="regex", text="[0-9]{4,8}"))
    assert trace(backend, one).likelihood is not None
    unseen = Rendering(options=(("thinking", "true"),))  # the template does not look at it
    found = trace(backend, dataclasses.replace(one, request=msgspec.structs.replace(one.request, rendering=unseen)))
    assert (found.fault, found.likelihood) == (None, None)


def test_the_form_of_a_request_decides_what_its_prompt_is(fast):
    (one,) = claims(fast, [{}])
    text_form = msgspec.structs.replace(one.request, form="text")
    assert trace(fast, dataclasses.replace(one, request=text_form)).fault == "prompt"


def test_a_conversation_that_the_template_refuses_is_said_so(backend):
    (one,) = claims(backend, [{}])
    refused = msgspec.structs.replace(one.request, messages=(Message(role="user", content="REFUSE THIS"),))
    answer = reply(backend, Retrace(1, dataclasses.replace(one, request=refused), Sampling()))
    assert isinstance(answer, Refused)
    assert answer.kind == "invalid"


def test_reading_again_gives_way_to_generations(backend):
    """A bounded piece each time: a generation that comes meanwhile gains a token between two of them."""
    (one,) = claims(backend, [{"seed": 1}], max_tokens=200)
    said = []
    scheduler = Scheduler(backend, said.append)
    scheduler.handle(Retrace(1, one, Sampling()))
    sampling = msgspec.structs.replace(WARM, temperature_micro=0, seed=1, max_tokens=3, min_tokens=3)
    scheduler.handle(Generate(2, EngineRequest((Message(role="user", content="q"),), sampling), max_tokens_cap=99))
    kinds = []
    while scheduler.busy:
        scheduler.step()
        scheduler.side()
        kinds = [type(message).__name__ for message in said]
    assert kinds.index("Retraced") > kinds.index("Step")


def test_a_cancelled_reading_gives_its_room_back(backend):
    (one,) = claims(backend, [{"max_tokens": 90, "min_tokens": 90}])  # more than one piece
    before, said = backend.room()[0], []
    scheduler = Scheduler(backend, said.append)
    scheduler.handle(Retrace(1, one, Sampling()))
    scheduler.side()
    scheduler.handle(Cancel(1))
    assert not scheduler.busy
    assert backend.room()[0] == before
    assert said == []
