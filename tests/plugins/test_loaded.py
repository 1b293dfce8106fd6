"""Hooks as the inline host and the worker call them, and the frames between worker and peer."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm import canonical
from nsllm.governance.features import EMPTY_ANSWER, AnswerFeatures
from nsllm.governance.hybrid_score import AnswerItem
from nsllm.governance.validation import Measure
from nsllm.governance.validator import TextItem
from nsllm.plugins.errors import HookResultError
from nsllm.plugins.hookspecs import HookSpecs, hookimpl
from nsllm.plugins.inline import InlinePluginHost
from nsllm.plugins.loaded import LoadedPlugin
from nsllm.plugins.port import PluginPort
from nsllm.plugins.wire import MAX_REPLY_BYTES, MAX_REQUEST_BYTES, Call, Reply, body_length, frame
from nsllm.plugins.worker import answer

GOOD = AnswerFeatures(
    tokens=20, logprob_micro=-800_000, gain_micro=500_000, relevance_cosine_ppm=700_000, embedding=bytes(384)
)
TEXT = TextItem(stage="output", text="The Moon is a satellite.", question="?", embedding=bytes(384), features=GOOD)


class Named:
    @hookimpl
    def nsllm_info(self):
        return {"name": "named", "version": "1", "description": ""}


async def test_the_inline_host_measures_both_stages_and_all_dimensions():
    host: PluginPort = InlinePluginHost()
    assert [m.layer for m in await host.validate(TEXT)] == ["coherence", "toxicity"]
    asked = TextItem(stage="input", text="Hi", question="Hi", embedding=bytes(384))
    assert [m.layer for m in await host.validate(asked)] == ["toxicity"]
    scores = await host.score(AnswerItem(question="?", answer=TEXT.text, features=GOOD))
    assert sorted(scores) == ["coherence", "relevance", "safety"]
    assert min(scores.values()) > 600_000
    cited = AnswerFeatures(**{**{f: getattr(GOOD, f) for f in GOOD.__struct_fields__}, "support_cosine_ppm": 900_000})
    assert "support" in await host.score(AnswerItem(question="?", answer=TEXT.text, features=cited))
    assert {row.state for row in host.info()} == {"ready"}


def test_nothing_heavy_is_imported_for_plugins():
    program = "import sys, nsllm.plugins.worker, nsllm.plugins.host; print([m for m in HEAVY if m in sys.modules])"
    heavy = "HEAVY = ('torch', 'transformers', 'sklearn', 'libp2p', 'numpy'); "
    run = subprocess.run([sys.executable, "-c", heavy + program], capture_output=True, check=True, text=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"x": 1_000_001}, "Expected `int` <= 1000000"),
        ({"x": -1}, "Expected `int` >= 0"),
        ({"x": True}, "Expected `int`, got `bool`"),
        ({"a.b": 1}, "matching regex"),
        ({5: 1}, "Expected `str`"),
        ([("x", 1)], "returned list of 1"),
        ({f"d{i}": 1 for i in range(17)}, "returned dict of 17"),
    ],
)
def test_scores_out_of_shape_are_refused(scores, message):
    class Plugin(Named):
        @hookimpl
        def nsllm_score(self, question):
            return scores

    plugin = LoadedPlugin(Plugin(), name="named", built_in=False)
    item = AnswerItem(question="?", answer="!", features=EMPTY_ANSWER)
    with pytest.raises(HookResultError, match=message):
        plugin.score(item)
    reply = answer([plugin], Call(answer=item))
    assert reply.kind == "failed"
    assert "HookResultError" in reply.reason


def test_only_built_in_plugins_speak_without_a_prefix():
    class Plugin(Named):
        @hookimpl
        def nsllm_validate(self, text):
            return [{"name": "toxicity", "kind": "safety", "ppm": 0, "limit_ppm": 1_000_000}]

        @hookimpl
        def nsllm_score(self, question):
            return {"safety": 1_000_000}

    plugin = LoadedPlugin(Plugin(), name="named", built_in=False)
    assert [m.layer for m in plugin.validate(TEXT)] == ["named.toxicity"]
    assert list(plugin.score(AnswerItem(question="?", answer="!", features=EMPTY_ANSWER))) == ["named.safety"]


def test_a_plugin_without_hooks_says_nothing_and_a_liar_is_refused():
    silent = LoadedPlugin(Named(), name="named", built_in=False)
    assert silent.validate(TEXT) == ()
    assert silent.score(AnswerItem(question="?", answer="!", features=EMPTY_ANSWER)) == {}
    with pytest.raises(HookResultError, match="plugin other calls itself named"):
        LoadedPlugin(Named(), name="other", built_in=False)


def test_every_hook_documents_every_argument_and_its_result():
    for name, hook in inspect.getmembers(HookSpecs, inspect.isfunction):
        assert name.startswith("nsllm_")
        text = inspect.getdoc(hook)
        assert text is not None
        assert "Returns:" in text
        for argument in list(inspect.signature(hook).parameters)[1:]:
            assert f"{argument}:" in text, f"{name} does not document {argument}"


@given(st.text(max_size=200), st.integers(0, 1_000_000))
def test_frames_spell_their_message(note, ppm):
    reply = Reply(kind="measures", measures=(Measure(layer="a.b", kind="safety", ppm=ppm, note=note),))
    data = frame(reply)
    assert body_length(data[:4], limit_bytes=MAX_REPLY_BYTES) == len(data) - 4
    assert canonical.decode(data[4:], Reply, limit_bytes=MAX_REPLY_BYTES) == reply


def test_a_frame_that_claims_too_much_is_refused_before_it_is_read():
    with pytest.raises(ValueError, match="claims 1073741824 bytes, the limit is 65536"):
        body_length((2**30).to_bytes(4, "big"), limit_bytes=MAX_REPLY_BYTES)
    with pytest.raises(ValueError, match="header"):
        body_length(b"\0\0", limit_bytes=MAX_REPLY_BYTES)


def test_the_longest_question_and_answer_fit_a_request():
    longest = AnswerItem(question="\U0001f600" * 100_000, answer="\U0001f600" * 100_000, features=GOOD)
    assert len(frame(Call(answer=longest))) < MAX_REQUEST_BYTES
