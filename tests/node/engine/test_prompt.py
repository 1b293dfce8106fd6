"""What a model reads of a request: the end of a prompt that is cut, the same for generators and validators."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nsllm.governance.ports import Claim
from nsllm.ids import Digest
from nsllm.node.engine.port import EngineRequest
from nsllm.node.engine.prompt import PromptError, prompt_tokens, spelled, truncated
from nsllm.node.engine.protocol import (
    Detokenize,
    Detokenized,
    Embed,
    Generate,
    Refused,
    Retrace,
    Retraced,
    Started,
    Step,
)
from nsllm.node.engine.scheduler import Scheduler
from nsllm.record import Message, Rendering, Request, Sampling

GREEDY = Sampling(temperature_micro=0, top_p_micro=1_000_000, top_k=0, seed=1, max_tokens=12)
LONG = "The quick brown fox. " * 40


def user(text):
    return (Message(role="user", content=text),)


def asked(text, form="chat", **changes):
    return EngineRequest(user(text), msgspec.structs.replace(GREEDY, **changes), form=form)


def run(backend, *requests, cap=20):
    """What a worker says of requests that come at once, and the scheduler after it."""
    said = []
    scheduler = Scheduler(backend, said.append)
    for job, request in enumerate(requests):
        scheduler.handle(Generate(job, request, max_tokens_cap=cap))
    while scheduler.busy:
        scheduler.step()
        scheduler.side()
    return said


def claim_of(said, request, job=0):
    started = next(message for message in said if isinstance(message, Started) and message.job == job)
    gains = [gain for message in said if isinstance(message, Step) for gain in message.gains if gain.job == job]
    return Claim(
        request=Request(
            model="m",
            model_digest=Digest(bytes(32)),
            messages=request.messages,
            sampling=request.sampling,
            form=request.form,
            prompt_token_ids=request.prompt_token_ids,
            rendering=request.rendering,
        ),
        sampling=msgspec.structs.replace(request.sampling, max_tokens=started.max_tokens),
        prompt_token_ids=started.prompt_token_ids,
        token_ids=tuple(token for gain in gains for token in gain.token_ids),
        text="".join(gain.text for gain in gains),
        finish_reason=gains[-1].reason,
    )


def trace(backend, claim):
    said = []
    scheduler = Scheduler(backend, said.append)
    scheduler.handle(Retrace(1, claim, Sampling()))
    while scheduler.busy:
        scheduler.side()
    (only,) = said
    assert isinstance(only, Retraced), only
    return only.trace


@settings(deadline=None)
@given(
    prompt=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    most=st.none() | st.integers(0, 50),
    context=st.integers(2, 30),
    limit=st.integers(1, 40),
)
def test_a_validator_that_knows_the_length_granted_finds_the_tokens_that_were_read(prompt, most, context, limit):
    sampling = Sampling(truncate_prompt_tokens=most)
    kept = truncated(prompt, sampling, context, limit)
    assert 1 <= len(kept) <= len(prompt)
    assert prompt[len(prompt) - len(kept) :] == kept
    if most is None:
        assert kept == prompt
    elif most:
        assert len(kept) == min(most, len(prompt))
    else:
        assert len(kept) == min(len(prompt), max(1, context - limit)) < context
        granted = min(limit, context - len(kept))
        assert truncated(prompt, sampling, context, granted) == kept


@pytest.mark.parametrize("form", ["chat", "text"])
@pytest.mark.parametrize("most", [1, 7, 120, 250])
def test_the_last_tokens_are_read_as_transformers_reads_them(backend, general, form, most):
    whole = general.chat_tokens(user(LONG)) if form == "chat" else general.text_tokens(LONG)
    assert len(whole) > general.context_tokens
    ids = torch.tensor([whole[-most:]])
    count = min(12, general.context_tokens - most)
    with torch.inference_mode():
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": count, "do_sample": False}
        expected = general._model._model.generate(ids, **options)[0, most:].tolist()
    request = asked(LONG, form, truncate_prompt_tokens=most)
    said = run(backend, request, asked("beside it"))
    claim = claim_of(said, request)
    assert list(claim.prompt_token_ids) == whole[-most:]
    assert list(claim.token_ids) == expected
    found = trace(backend, claim)
    assert (found.fault, found.likelihood) == (None, None)
    assert found.worst_strain <= 0.0625


@pytest.mark.parametrize("limit", [12, None, 255, 1000])
def test_as_many_as_the_context_leaves_beside_the_answer(backend, limit):
    request = asked(LONG, "text", truncate_prompt_tokens=0, max_tokens=limit)
    claim = claim_of(run(backend, request), request)
    granted = min(limit or 20, backend.context_tokens - 1)
    assert (len(claim.prompt_token_ids), claim.sampling.max_tokens) == (backend.context_tokens - granted, granted)
    assert trace(backend, claim).fault is None


def test_a_prompt_that_fits_is_left_whole(fast):
    for most in (0, 200):
        request = asked("hi", truncate_prompt_tokens=most)
        assert list(claim_of(run(fast, request), request).prompt_token_ids) == fast.chat_tokens(user("hi"))


def test_a_record_that_cut_otherwise_than_it_was_asked_is_found_out(fast):
    request = asked("some words that are longer than seven tokens", truncate_prompt_tokens=7)
    claim = claim_of(run(fast, request), request)
    whole = msgspec.structs.replace(claim.request.sampling, truncate_prompt_tokens=None)
    shorter = msgspec.structs.replace(claim.sampling, truncate_prompt_tokens=6)
    for forged, fault in (
        (dataclasses.replace(claim, prompt_token_ids=claim.prompt_token_ids[1:]), "prompt"),
        (dataclasses.replace(claim, request=msgspec.structs.replace(claim.request, sampling=whole)), "sampling"),
        (dataclasses.replace(claim, sampling=shorter, prompt_token_ids=claim.prompt_token_ids[1:]), "sampling"),
    ):
        assert trace(fast, forged).fault == fault


def test_a_message_is_gone_on_with_as_transformers_would_and_found_to_be(backend, general):
    begun = (*user("Count to five."), Message(role="assistant", content="one two"))
    request = dataclasses.replace(asked(""), messages=begun, rendering=Rendering(continues=True))
    claim = claim_of(run(backend, request, asked("beside it")), request)
    turns = [{"role": message.role, "content": message.content} for message in begun]
    prompt = general._tokenizer.apply_chat_template(turns, tokenize=False, continue_final_message=True)
    assert prompt.endswith("one two")
    assert list(claim.prompt_token_ids) == general.tokens(prompt)
    found = trace(backend, claim)
    assert (found.fault, found.likelihood) == (None, None)  # it is judged with the message that it continues
    assert found.worst_strain <= 0.0625
    other = msgspec.structs.replace(claim.request, rendering=None)
    assert trace(backend, dataclasses.replace(claim, request=other)).fault == "prompt"


def test_what_cannot_be_cut_is_refused_alone(backend):
    bad = [
        asked("hi", truncate_prompt_tokens=backend.context_tokens + 1),
        dataclasses.replace(asked("hi", truncate_prompt_tokens=3), images=(b"PNG",)),
    ]
    said = run(backend, bad[0], asked("beside it"), bad[1])
    refused = {message.job: message for message in said if isinstance(message, Refused)}
    named = {job: (one.kind, one.param) for job, one in refused.items()}
    assert named == dict.fromkeys((0, 2), ("invalid", "truncate_prompt_tokens"))
    assert str(backend.context_tokens) in refused[0].message
    request = asked("beside it")
    assert claim_of(said, request, job=1).token_ids == claim_of(run(backend, request), request).token_ids


def test_the_whole_context_leaves_no_answer(fast):
    with pytest.raises(PromptError) as refused:
        prompt_tokens(fast, asked(LONG, "text", truncate_prompt_tokens=fast.context_tokens), 1)
    assert refused.value.kind == "overflow"


@settings(deadline=None)
@given(token_ids=st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_tokens_are_read_as_they_are_and_spell_what_the_tokenizer_says(general, token_ids):
    text = spelled(general, token_ids)
    request = dataclasses.replace(asked(text, "text"), prompt_token_ids=tuple(token_ids))
    assert prompt_tokens(general, request, 1) == token_ids
    assert text == general.text(token_ids)


def test_a_prompt_of_tokens_goes_on_as_transformers_goes_on(backend, general):
    broken = [200, 5, 199, 3, 7, 140]  # half characters, an end token: no text reads like that
    text = spelled(backend, broken)
    assert backend.text_tokens(text) != broken
    ids = torch.tensor([broken])
    with torch.inference_mode():
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False}
        expected = general._model._model.generate(ids, **options)[0, len(broken) :].tolist()
    request = dataclasses.replace(asked(text, "text"), prompt_token_ids=tuple(broken))
    said = run(backend, asked("beside it"), request)
    claim = claim_of(said, request, job=1)
    assert list(claim.token_ids) == expected
    assert list(claim.prompt_token_ids) == broken
    found = trace(backend, claim)
    assert found.fault is None
    assert found.worst_strain <= 0.0625
    cut = dataclasses.replace(request, sampling=msgspec.structs.replace(request.sampling, truncate_prompt_tokens=2))
    assert list(claim_of(run(backend, cut), cut).prompt_token_ids) == broken[-2:]


def test_a_record_whose_tokens_spell_another_text_is_found_out(fast):
    token_ids = tuple(fast.tokens("hello there"))
    request = dataclasses.replace(asked("hello there", "text"), prompt_token_ids=token_ids)
    claim = claim_of(run(fast, request), request)
    assert trace(fast, claim).fault is None
    other = (Message(role="user", content="hello where"),)
    for forged in (
        msgspec.structs.replace(claim.request, messages=other),
        msgspec.structs.replace(claim.request, prompt_token_ids=(*token_ids[:-1], 2**31 - 1)),
        msgspec.structs.replace(claim.request, prompt_token_ids=token_ids[1:]),
    ):
        assert trace(fast, dataclasses.replace(claim, request=forged)).fault == "prompt"


def test_what_is_no_token_of_the_model_is_refused_alone(backend):
    wrong = dataclasses.replace(asked("x", "text"), prompt_token_ids=(5, backend.vocabulary))
    last = dataclasses.replace(asked("x", "text"), prompt_token_ids=(5, backend.vocabulary - 1))
    said = run(backend, wrong, last)
    (refused,) = [message for message in said if isinstance(message, Refused)]
    assert (refused.job, refused.kind, refused.param) == (0, "invalid", "prompt_token_ids")
    assert str(backend.vocabulary) in refused.message
    assert len(claim_of(said, last, job=1).token_ids) == 12
    spelt = []
    Scheduler(backend, spelt.append).handle(Detokenize(7, (5, backend.vocabulary)))
    assert isinstance(spelt[0], Refused)
    Scheduler(backend, spelt.append).handle(Detokenize(8, (65, 66), apart=True))
    assert spelt[1] == Detokenized(8, "", tuple(map(backend.spelling.written, (65, 66))))
    assert all(spelt[1].written)


def test_a_conversation_has_no_tokens_of_its_own():
    with pytest.raises(ValueError, match="conversation"):
        Request(
            model="m", model_digest=Digest(bytes(32)), messages=user("x"), sampling=Sampling(), prompt_token_ids=(1,)
        )


@pytest.mark.parametrize("most", [None, 3, 5, 40])
def test_an_encoder_reads_its_own_tokens_as_it_reads_their_text(fast, general, most):
    texts = ["hello world", "a " * 300]
    known = general._model and [general.encoder._tokenizer(text)["input_ids"] for text in texts]
    for backend in (fast, general):
        by_text = embedded(backend, texts, most)
        cut = [ids if most is None else [*ids[: most - 1], ids[-1]] if len(ids) > most else ids for ids in known]
        by_tokens = embedded(backend, [tuple(ids[:256]) for ids in cut], most)
        assert torch.allclose(by_text[0], by_tokens[0], atol=1e-5)
        if most is not None:
            assert torch.allclose(by_text[1], by_tokens[1], atol=1e-5)
    assert torch.allclose(
        embedded(fast, [tuple(known[0])], most), embedded(general, [tuple(known[0])], most), atol=1e-3
    )


def test_one_encoder_token_that_is_none_refuses_its_request_alone(fast):
    said = []
    scheduler = Scheduler(fast, said.append)
    scheduler.handle(Embed(1, ("a", (5, 10**6))))
    scheduler.handle(Embed(2, ("a", (5,))))
    while scheduler.busy:
        scheduler.side()
    refused, made = said
    assert (refused.job, refused.kind, refused.param) == (1, "invalid", "input")
    assert (made.job, len(made.vectors)) == (2, 2)


def embedded(backend, texts, most):
    return backend.encoder.vectors(backend.encoder.read(texts, most))


def test_a_bias_on_what_is_no_token_is_refused_alone(backend):
    last = backend.vocabulary - 1
    said = run(backend, asked("a", logit_bias=((last, 1), (last + 1, 1))), asked("a", logit_bias=((last, 1),)))
    (refused,) = [message for message in said if isinstance(message, Refused)]
    assert (refused.job, refused.kind, refused.param) == (0, "invalid", "logit_bias")
    assert str(last + 1) in refused.message
