"""The default models really answer: one worker for all questions."""

from __future__ import annotations

import os
import random

import pytest
import torch
import trio

from nsllm.governance.ports import Likelihood
from nsllm.node.engine.backend import Read
from nsllm.node.engine.choice import choose, text_digest
from nsllm.node.engine.encoders import open_encoder
from nsllm.node.engine.fast.backend import FastBackend
from nsllm.node.engine.fast.encoder import BertEncoder
from nsllm.node.engine.models import default_home, ensure_default_models, model_digest
from nsllm.node.engine.port import EngineRequest, Piece
from nsllm.node.engine.supervisor import WorkerEngine
from nsllm.record import Message, Sampling

pytestmark = pytest.mark.model

POEM = """The sea is calm tonight. The tide is full, the moon lies fair upon the straits; on the French coast the light
gleams and is gone; the cliffs of England stand, glimmering and vast, out in the tranquil bay. Come to the window, sweet
is the night-air! Only, from the long line of spray where the sea meets the moon-blanched land, listen! you hear the
grating roar of pebbles which the waves draw back, and fling, at their return, up the high strand, begin, and cease, and
then again begin, with tremulous cadence slow, and bring the eternal note of sadness in. Sophocles long ago heard it on
the Aegean, and it brought into his mind the turbid ebb and flow of human misery.
"""

SKY = (
    "Sunlight contains all colours, but air molecules scatter short wavelengths more than long ones. "
    "Blue light is therefore spread across the whole sky."
)


@pytest.fixture(scope="module")
def paths():
    return ensure_default_models(default_home(os.environ), lambda _progress: None)


def user(text):
    return (Message(role="user", content=text),)


async def answer(engine, question, **sampling):
    async with engine.generate(EngineRequest(user(question), Sampling(**sampling))) as stream:
        events = [event async for event in stream]
    return "".join(event.text for event in events if isinstance(event, Piece)), events[-1]


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_every_machine_converts_to_the_same_bytes(paths):
    """So that peers agree on the model's name; a change here is a change of the default rubric."""
    assert model_digest(paths.text).hex() == "7f89a35408ba8b69627a1d448c9deedccbd30b631b0c89783b2a7931c9190f49"
    assert model_digest(paths.encoder).hex() == "e57392bc7bc1ce81b03925414431532143154532eec44440a977492887509bec"
    digest = text_digest(paths)  # as a peer runs it: in int8
    assert digest == text_digest(paths) != model_digest(paths.text)


def test_the_encoder_is_the_same_one_in_bfloat16(paths):
    """Nothing that is held against a threshold moves by a hundredth: peers with and without it judge alike."""
    sentences = [SKY, "Why is the sky blue?", "How do I bake bread?", *POEM.replace("\n", " ").split(";")]
    exact = BertEncoder(paths.encoder, torch.float32)
    rows = exact.read(sentences)
    one = exact.vectors(rows)
    library = choose(paths.text, "auto").library
    for quick in (BertEncoder(paths.encoder, torch.bfloat16), open_encoder(paths.encoder, library)):
        other = quick.vectors(rows)
        assert (one * other).sum(1).min() > 0.9995
        assert (one @ one.T - other @ other.T).abs().max() < 0.01


def test_int8_is_close_to_bfloat16(paths):
    """On 300 tokens of a fixed text, both read at once: perplexity within 2 %, first choices mostly the same."""
    from transformers import AutoModelForCausalLM

    choice = choose(paths.text, "auto")
    assert choice.dtype == "int8"
    backend = FastBackend(paths.text, paths.encoder, choice.library, "int8", threads=1, cache_mb=1)
    tokens = backend.tokens(POEM * 2)[:300]
    (ours,) = backend.forward([Read(backend.open(tokens, 300, side=True), tokens, len(tokens))])
    model = AutoModelForCausalLM.from_pretrained(paths.text, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        theirs = model(torch.tensor([tokens])).logits[0].float()
    following = torch.tensor(tokens[1:])
    losses = [torch.nn.functional.cross_entropy(logits[:-1], following) for logits in (ours, theirs)]
    assert abs(float(losses[0] - losses[1])) < 0.02
    assert float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()) > 0.88


async def test_the_default_models_answer_judge_and_embed(paths):
    engine = WorkerEngine(text=paths.text, encoder=paths.encoder, threads=1, max_queue=8, rng=random.Random(1))
    assert engine.info().text.context_tokens == 8192
    assert engine.info().text.defaults.temperature_micro == 200_000
    async with engine.running():
        # A question whose first token is sure (0.73 against 0.06 in float32), so that no rounding changes the answer.
        text, done = await answer(engine, "What is the capital of Japan?", temperature_micro=0)
        assert "Tokyo" in text
        assert done.finish_reason == "stop"
        assert "<|" not in text

        first, done = await answer(engine, "Tell me a story.", seed=1, max_tokens=24)
        assert done.sampling.top_p_micro == 900_000
        assert (await answer(engine, "Tell me a story.", seed=1, max_tokens=24))[0] == first

        # A repetition penalty is the usual cure for the loops that this model falls into.
        count = 100
        looping, _ = await answer(engine, "Write a poem.", temperature_micro=0, max_tokens=count)
        cured, _ = await answer(
            engine,
            "Write a poem.",
            temperature_micro=0,
            max_tokens=count,
            repetition_penalty_micro=1_300_000,
        )
        assert len(set(looping.split())) / len(looping.split()) < len(set(cured.split())) / len(cured.split())

        words = SKY.split()
        random.Random(1).shuffle(words)
        good, shuffled, off = await engine.likelihoods(
            [
                (user("Why is the sky blue?"), SKY),
                (user("Why is the sky blue?"), " ".join(words)),
                (user("How do I cook rice?"), SKY),
            ]
        )
        assert good.mean_logprob > shuffled.mean_logprob + 1
        assert good.mean_logprob > off.mean_logprob
        assert isinstance(good, Likelihood)
        assert good.tokens == off.tokens > 20

        rice, same, other = await engine.embed(
            ["How do I cook rice?", "What is the best way to boil rice?", "The stock market fell sharply today."]
        )
        assert cosine(rice, same) > 0.6
        assert cosine(rice, other) < 0.2


async def test_judging_does_not_wait_for_a_generation(paths):
    engine = WorkerEngine(text=paths.text, encoder=paths.encoder, threads=1, max_queue=8, rng=random.Random(1))
    async with engine.running(), trio.open_nursery() as nursery:
        ended = trio.Event()

        async def tell():
            await answer(engine, "Tell me a long story.", seed=1, max_tokens=120)
            ended.set()

        nursery.start_soon(tell)
        while engine.info().active == 0 or engine.info().state != "ready":
            await trio.sleep(0.01)
        await engine.likelihoods([(user("Why is the sky blue?"), SKY)])
        await engine.embed(["How do I cook rice?"])
        assert not ended.is_set()
