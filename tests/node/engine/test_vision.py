"""Models that see: the same tokens as transformers' own `generate`, whatever else runs."""

from __future__ import annotations

import io
import json
import random

import pytest
import torch
from PIL import Image, ImageDraw

from nsllm.node.attachments.attached import PLACE
from nsllm.node.engine.backend import Eyes, Read, TemplateError
from nsllm.node.engine.card import read_text_info
from nsllm.node.engine.choice import choose
from nsllm.node.engine.devices import Devices
from nsllm.node.engine.models import ModelPaths, model_digest
from nsllm.node.engine.port import Done, EngineRequest
from nsllm.node.engine.protocol import Gain, Generate, Refused, Started, Step
from nsllm.node.engine.scheduler import Scheduler
from nsllm.node.engine.supervisor import WorkerEngine
from nsllm.node.engine.tiny_vision import CONTEXT_TOKENS, build_tiny_idefics, build_tiny_llava
from nsllm.node.engine.vision import VisionBackend, VisionModel
from nsllm.node.errors import ConfigError, InvalidRequestError
from nsllm.record import Message, Rendering, Sampling

GREEDY = Sampling(
    temperature_micro=0, top_p_micro=1_000_000, top_k=0, repetition_penalty_micro=1_000_000, seed=0, max_tokens=24,
    min_p_micro=0, presence_penalty_micro=0, frequency_penalty_micro=0, min_tokens=0,
)  # fmt: skip


def picture(colour: str, size=(100, 80)) -> bytes:
    image = Image.new("RGB", size, colour)
    ImageDraw.Draw(image).rectangle((20, 20, 60, 60), fill="black")
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


RED, BLUE = picture("red"), picture("blue", (60, 200))


def user(content: str) -> tuple[Message, ...]:
    return (Message(role="user", content=content),)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("vision")
    return {"idefics3": build_tiny_idefics(home), "llava": build_tiny_llava(home)}


@pytest.fixture(scope="module", params=["idefics3", "llava"])
def seeing(request, folders, tiny) -> VisionBackend:
    torch.set_num_threads(1)
    return VisionBackend(folders[request.param], tiny.encoder)


def reference(folder, parts, tokens: int = 24) -> tuple[list[int], list[int]]:
    """Prompt and answer of transformers itself."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    prompt = inputs["input_ids"][0].tolist()
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0].tolist()
    return prompt, out[len(prompt) :]


def shown(data: bytes) -> dict:
    return {"type": "image", "image": Image.open(io.BytesIO(data))}


def said(text: str) -> dict:
    return {"type": "text", "text": text}


CONVERSATIONS = {
    "picture first": ((PLACE + "What is it?"), (RED,), [shown(RED), said("What is it?")]),
    "text first": (("What is it?\n" + PLACE), (BLUE,), [said("What is it?\n"), shown(BLUE)]),
    "two pictures": (
        f"Compare {PLACE} and {PLACE}.",
        (RED, BLUE),
        [said("Compare "), shown(RED), said(" and "), shown(BLUE), said(".")],
    ),
    "no picture": ("What is it?", (), [said("What is it?")]),
}


def run(scheduler: Scheduler, sent: list) -> dict[int, list[int]]:
    for _ in range(500):
        if not scheduler.busy:
            break
        scheduler.step()
    answers: dict[int, list[int]] = {}
    for message in sent:
        gains: tuple[Gain, ...] = message.gains if isinstance(message, Step) else ()
        for gain in gains:
            answers.setdefault(gain.job, []).extend(gain.token_ids)
    return answers


def test_the_tokens_are_those_of_generate_though_all_run_at_once(seeing, folders):
    sent: list = []
    scheduler = Scheduler(seeing, sent.append)
    wanted = {}
    folder = next(folder for folder in folders.values() if folder.name.endswith(kind_of(seeing)))
    for job, (content, images, parts) in enumerate(CONVERSATIONS.values()):
        request = EngineRequest(messages=user(content), sampling=GREEDY, images=images)
        scheduler.handle(Generate(job=job, request=request, max_tokens_cap=24))
        wanted[job] = reference(folder, parts)
    answers = run(scheduler, sent)
    prompts = {message.job: list(message.prompt_token_ids) for message in sent if isinstance(message, Started)}
    assert prompts == {job: prompt for job, (prompt, _) in wanted.items()}
    assert answers == {job: answer for job, (_, answer) in wanted.items()}
    assert len({tuple(answer) for answer in answers.values()}) == len(answers)


def kind_of(backend: VisionBackend) -> str:
    return {"Idefics3Processor": "idefics3", "LlavaProcessor": "llava"}[type(backend._processor).__name__]


def first_logits(backend: VisionBackend, content: str, *images: bytes) -> torch.Tensor:
    prompt = backend.picture_tokens(user(content), images)
    (logits,) = backend.forward([Read(backend.open(prompt, CONTEXT_TOKENS, side=False), prompt, 1)])
    return logits[0]


def test_the_picture_makes_a_difference_and_its_place_too(seeing):
    red = first_logits(seeing, PLACE + "What?", RED)
    assert not torch.equal(red, first_logits(seeing, PLACE + "What?", BLUE))
    assert not torch.equal(red, first_logits(seeing, "What?" + PLACE, RED))
    assert torch.equal(red, first_logits(seeing, PLACE + "What?", RED))


def test_a_prompt_in_pieces_gives_what_a_whole_one_gives(seeing):
    prompt = seeing.picture_tokens(user(f"{PLACE}Is this red?"), (RED,))
    whole = first_logits(seeing, f"{PLACE}Is this red?", RED)
    cache = seeing.open(prompt, CONTEXT_TOKENS, side=False)
    for start in range(0, len(prompt), 7):
        piece = prompt[start : start + 7]
        (logits,) = seeing.forward([Read(cache, piece, int(start + 7 >= len(prompt)))])
    assert cache.read == len(prompt)
    assert torch.equal(logits[0], whole)
    seeing.close(cache)


@pytest.mark.parametrize(
    ("content", "images"),
    [("no place", (RED,)), (PLACE + PLACE, (RED,)), (PLACE, ()), (PLACE + "and <image>", (RED,)), ("<image>", ())],
)
def test_places_must_agree_with_pictures_and_no_text_may_pose_as_one(seeing, content, images):
    with pytest.raises(TemplateError):
        seeing.picture_tokens(user(content), images)


def test_who_judges_reads_a_word_where_a_picture_stood(seeing):
    assert seeing.chat_tokens(user(PLACE + "Hm")) == seeing.chat_tokens(user("[picture]Hm"))


def test_a_model_that_only_reads_refuses_pictures(general):
    assert not isinstance(general, Eyes)
    sent: list = []
    request = EngineRequest(messages=user(PLACE), sampling=GREEDY, images=(RED,))
    Scheduler(general, sent.append).handle(Generate(job=1, request=request, max_tokens_cap=4))
    assert sent == [Refused(job=1, kind="invalid", message="this model takes no pictures", param="messages")]


def test_its_card_says_that_it_sees(folders, tiny):
    for folder in folders.values():
        info = read_text_info(folder, choose(folder, "auto"))
        assert (info.sees, info.context_tokens, info.dtype) == (True, CONTEXT_TOKENS, "float32")
        assert choose(folder, "auto").library is None
    assert not read_text_info(tiny.text, choose(tiny.text, "general")).sees


def test_how_pictures_are_prepared_is_part_of_the_digest(folders, tmp_path):
    before = build_tiny_llava(tmp_path)
    digest = model_digest(before)
    path = next(
        path for path in (before / "processor_config.json", before / "preprocessor_config.json") if path.exists()
    )
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "more": 1}))
    assert model_digest(before) != digest


def test_a_model_without_its_processor_is_refused_with_the_reason(tmp_path, tiny):
    folder = build_tiny_llava(tmp_path)
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="the processor of tiny-random-llava cannot be loaded"):
        VisionBackend(folder, tiny.encoder)


def test_a_model_that_sees_is_not_spread_over_devices(folders):
    with pytest.raises(ConfigError, match="one device"):
        VisionModel(folders["llava"], Devices("pipeline", ("cpu",)))


async def test_the_real_worker_answers_about_a_picture(folders, tiny: ModelPaths) -> None:
    content, images, parts = CONVERSATIONS["two pictures"]
    _, wanted = reference(folders["idefics3"], parts, tokens=8)
    engine = WorkerEngine(
        text=folders["idefics3"], encoder=tiny.encoder, threads=1, max_queue=4, rng=random.Random(1), max_tokens=8
    )
    async with engine.running():
        assert engine.info().text.sees
        request = EngineRequest(
            messages=user(content), sampling=Sampling(temperature_micro=0, max_tokens=8), images=images
        )
        tokens: list[int] = []
        async with engine.generate(request) as pieces:
            async for piece in pieces:
                if not isinstance(piece, Done):
                    tokens.extend(piece.token_ids)
        assert tokens == wanted
        with pytest.raises(InvalidRequestError) as caught:
            async with engine.generate(EngineRequest(messages=user("<image>" + PLACE), sampling=GREEDY, images=(RED,))):
                pass
        assert caught.value.param == "messages"


def test_an_answer_goes_on_with_a_message_under_a_picture(seeing):
    begun = (*user(PLACE + "What is it?"), Message(role="assistant", content="It is"))
    ends = seeing.tokens("assistant\nIt is")
    continued = list(seeing.picture_tokens(begun, [picture("red")], rendering=Rendering(continues=True)))
    assert continued[-len(ends) :] == ends
    assert list(seeing.picture_tokens(begun, [picture("red")]))[: len(continued)] == continued
