"""Plugin workers are real processes here: a plugin's fault costs that plugin, the built-in layers fail closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest
import trio

from nsllm.governance.errors import SafetyUnavailableError
from nsllm.governance.features import EMPTY_ANSWER
from nsllm.governance.hybrid_score import AnswerItem
from nsllm.governance.validation import Measure
from nsllm.governance.validator import TextItem
from nsllm.plugins.errors import PluginMissingError, WorkerError
from nsllm.plugins.host import PluginHost, _own_names
from nsllm.plugins.inline import InlinePluginHost
from nsllm.plugins.link import WorkerLimits, WorkerLink
from nsllm.plugins.wire import Dimension, Reply

pytestmark = pytest.mark.process

LIMITS = WorkerLimits(start_s=60, call_s=20, wait_s=90, first_backoff_s=0.01, last_backoff_s=0.05)
IMPATIENT = WorkerLimits(start_s=60, call_s=0.3, wait_s=90, first_backoff_s=0.01, last_backoff_s=0.05)
TEXT = TextItem(stage="output", text="You are kind.", question="?", embedding=bytes(384), features=EMPTY_ANSWER)
ANSWER = AnswerItem(question="What is the Moon?", answer="A satellite of the Earth.", features=EMPTY_ANSWER)


@asynccontextmanager
async def running(*names: str, limits: WorkerLimits = LIMITS) -> AsyncIterator[PluginHost]:
    host = PluginHost(names, limits=limits)
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        yield host
        nursery.cancel_scope.cancel()


def workers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie is one, too
            found += [child] if "nsllm.plugins.worker" in child.cmdline() else []
    return found


def state(host: PluginHost, name: str) -> tuple[str, str]:
    [row] = [row for row in host.info() if row.name == name]
    return row.state, row.reason


def layers(measures) -> set[str]:
    return {measure.layer for measure in measures}


async def test_the_worker_says_what_the_inline_host_says():
    inline = InlinePluginHost()
    async with running() as host:
        assert await host.validate(TEXT) == await inline.validate(TEXT)
        assert await host.score(ANSWER) == await inline.score(ANSWER)
        assert host.rule_sets() == inline.rule_sets()
        assert host.info() == inline.info()
        assert len(workers()) == 1
    assert workers() == []


async def test_the_same_question_is_judged_by_the_built_ins_once_and_by_plugins_each_time(install, monkeypatch):
    install(
        "good",
        """
        @hookimpl
        def nsllm_validate(stage, text, features):
            return [{"name": "length", "kind": "quality", "ppm": len(text), "limit_ppm": 3, "note": stage}]
        """,
    )
    asked: list[str] = []
    call = WorkerLink.call

    async def counted(link: WorkerLink, wanted: object):
        asked.append(link.name)
        return await call(link, wanted)

    monkeypatch.setattr(WorkerLink, "call", counted)
    monkeypatch.setattr("nsllm.plugins.host.REMEMBERED", 1)
    questions = [TextItem(stage="input", text=text, question=text, embedding=bytes(384)) for text in ("One?", "Two?")]
    async with running("good") as host:
        for item in (questions[0], questions[0], questions[1], questions[0]):
            assert layers(await host.validate(item)) == {"toxicity", "good.length"}
        assert (asked.count("built-in"), asked.count("good")) == (3, 4)
        for _ in range(2):
            await host.validate(TEXT)  # answers are not remembered
        assert asked.count("built-in") == 5


async def test_a_plugin_runs_beside_the_built_ins_and_never_in_this_process(install):
    install(
        "good",
        """
        @hookimpl
        def nsllm_validate(stage, text, features):
            assert features["embedding"] == bytes(384)
            return [{"name": "length", "kind": "quality", "ppm": len(text), "limit_ppm": 3, "note": stage}]

        @hookimpl
        def nsllm_score(question, answer):
            return {"pid": os.getpid() % 1000, "brevity": 1_000_000 - len(answer)}
        """,
    )
    async with running("good") as host:
        measure = (await host.validate(TEXT))[-1]
        assert (measure.layer, measure.ppm, measure.limit_ppm, measure.note) == ("good.length", 13, 3, "output")
        scores = await host.score(ANSWER)
        assert scores["good.brevity"] == 999_975
        assert scores["good.pid"] != os.getpid() % 1000
        assert state(host, "good") == ("ready", "")
    assert [name for name in sys.modules if name.startswith("nsllm_test_plugin")] == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise KeyError(text)", "KeyError at nsllm_test_plugin_bad.py:"),
        ("return 5", "nsllm_validate returned int"),
        ("return [{}] * 17", "nsllm_validate returned list of 17"),
        ("return [{'name': 'x', 'kind': 'safety', 'ppm': 1_000_001}]", "nsllm_validate: Expected `int` <= 1000000"),
        ("return [{'name': 'x', 'kind': 'safety', 'ppm': 0.5}]", "nsllm_validate: Expected `int`, got `float`"),
        ("return [{'name': 'x.y', 'kind': 'safety', 'ppm': 5}]", "nsllm_validate: Expected `str` matching regex"),
        ("return [{'name': 'x', 'kind': 'veto', 'ppm': 5}]", "nsllm_validate: Expected `str` matching regex"),
        ("return [{'name': 'x', 'kind': 'safety', 'ppm': 5, 'note': 'n' * 201}]", "nsllm_validate: Expected `str` of"),
    ],
)
async def test_a_plugin_that_raises_or_returns_nonsense_is_disabled_and_the_rest_goes_on(install, body, reason):
    install("bad", f"@hookimpl\ndef nsllm_validate(text):\n    {body}\n")
    async with running("bad") as host:
        for _ in range(3):
            assert layers(await host.validate(TEXT)) == {"coherence", "toxicity"}
        now, why = state(host, "bad")
        assert now == "disabled"
        assert reason in why
        assert TEXT.text not in why
        assert layers(await host.validate(TEXT)) == {"coherence", "toxicity"}
        with trio.fail_after(60):
            while len(workers()) != 1:
                await trio.sleep(0.01)


async def test_failures_count_in_a_row_only(install):
    install("moody", "@hookimpl\ndef nsllm_validate(text):\n    return [] if text == 'calm' else 5\n")
    calm = TextItem(stage="input", text="calm", question="calm", embedding=bytes(384))
    async with running("moody") as host:
        for _ in range(3):
            await host.validate(TEXT)
            await host.validate(TEXT)
            await host.validate(calm)
        assert state(host, "moody") == ("ready", "")


async def test_a_plugin_that_hangs_costs_itself_only(install):
    install("slow", "@hookimpl\ndef nsllm_validate(text):\n    time.sleep(3600)\n")
    async with running("slow", limits=IMPATIENT) as host:
        for _ in range(3):
            assert layers(await host.validate(TEXT)) == {"coherence", "toxicity"}
        assert state(host, "slow") == ("disabled", "no answer within 0.3 s")


async def test_a_plugin_that_crashes_is_restarted_then_given_up(install):
    install("crash", "@hookimpl\ndef nsllm_validate(text):\n    os._exit(3)\n")
    async with running("crash") as host:
        for _ in range(3):
            assert layers(await host.validate(TEXT)) == {"coherence", "toxicity"}
        assert state(host, "crash") == ("disabled", "the worker process ended")
        assert {row.name: row.restarts for row in host.info()} == {"coherence": 0, "toxicity": 0, "crash": 2}


@pytest.mark.parametrize(
    ("source", "head", "reason"),
    [
        ("raise RuntimeError('at import')", None, "RuntimeError at nsllm_test_plugin_broken.py"),
        ("@hookimpl\ndef nsllm_made_up(text):\n    pass\n", None, "unknown hook 'nsllm_made_up'"),
        ("@hookimpl\ndef nsllm_validate(prompt):\n    pass\n", None, "prompt"),
        ("", "", "nsllm_info"),
    ],
)
async def test_a_plugin_that_cannot_start_is_disabled_with_the_reason(install, source, head, reason):
    install("broken", source, **({} if head is None else {"head": head}))
    async with running("broken") as host:
        with trio.fail_after(60):
            while state(host, "broken")[0] != "disabled":
                await trio.sleep(0.02)
        assert reason in state(host, "broken")[1]
        assert layers(await host.validate(TEXT)) == {"coherence", "toxicity"}


async def test_a_worker_that_was_taken_over_cannot_speak_as_a_built_in():
    link = WorkerLink("good", built_in=False, limits=LIMITS)
    lie = Reply(kind="measures", measures=(Measure(layer="toxicity", kind="safety", ppm=0),))
    with pytest.raises(WorkerError, match="plugin worker good spoke as toxicity"):
        _own_names(link, lie)
    with pytest.raises(WorkerError, match="spoke as safety"):
        _own_names(link, Reply(kind="scores", scores=(Dimension(name="safety", ppm=1),)))


async def test_the_built_in_worker_comes_back_after_a_kill():
    async with running() as host:
        [worker] = workers()
        worker.kill()
        assert layers(await host.validate(TEXT)) == {"coherence", "toxicity"}
        assert state(host, "toxicity") == ("ready", "")
        assert host.info()[0].restarts == 1


async def test_the_built_in_layers_fail_closed():
    limits = WorkerLimits(start_s=60, call_s=1e-6, wait_s=60, first_backoff_s=0.01)
    async with running(limits=limits) as host:
        for ask in (lambda: host.validate(TEXT), lambda: host.score(ANSWER)):
            with pytest.raises(SafetyUnavailableError, match="no answer within 1e-06 s"):
                await ask()
        assert state(host, "toxicity")[0] != "disabled"


async def test_a_cancelled_caller_leaves_the_worker_in_order(install):
    install("lazy", "@hookimpl\ndef nsllm_validate(text):\n    time.sleep(0.2)\n    return []\n")
    async with running("lazy") as host:
        with trio.move_on_after(0.05):
            await host.validate(TEXT)
        assert await host.score(ANSWER) == await InlinePluginHost().score(ANSWER)
        assert {row.state for row in host.info()} == {"ready"}


async def test_many_calls_at_once():
    seen = []

    async def ask(host):
        seen.append(layers(await host.validate(TEXT)))

    async with running() as host, trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(ask, host)
    assert seen == [{"coherence", "toxicity"}] * 40


@pytest.mark.parametrize("name", ["missing", "toxicity", "built-in"])
def test_names_that_cannot_be_enabled_are_refused_before_anything_starts(name):
    with pytest.raises(PluginMissingError, match=name):
        PluginHost([name])


def test_a_name_that_two_distributions_offer_is_refused(install, tmp_path):
    install("twin", "")
    second = tmp_path / "other-1.0.dist-info"
    second.mkdir()
    (second / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (second / "entry_points.txt").write_text("[nsllm.plugins]\ntwin = nsllm_test_plugin_twin\n")
    with pytest.raises(PluginMissingError, match="2 installed distributions offer plugin twin"):
        PluginHost(["twin"])


async def test_a_worker_ignores_the_interrupt_and_gets_no_secrets(install, monkeypatch):
    monkeypatch.setenv("NSLLM_API_KEY", "not for plugins")
    install(
        "nosy",
        """
        @hookimpl
        def nsllm_score(question):
            return {"secrets": sum("KEY" in name for name in os.environ)}
        """,
    )
    async with running("nosy") as host:
        for worker in workers():
            worker.send_signal(signal.SIGINT)
        assert (await host.score(ANSWER))["nosy.secrets"] == 0
        assert {row.restarts for row in host.info()} == {0}


PARENT = """
import sys, trio
from nsllm.plugins.host import PluginHost
from nsllm.plugins.link import WorkerLimits
sys.path[:0] = sys.argv[1:]

async def main():
    host = PluginHost(["stuck"], limits=WorkerLimits(call_s=3600, start_s=60))
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        print("up", flush=True)
        from nsllm.governance.validator import TextItem
        await host.validate(TextItem(stage="input", text="t", question="t", embedding=bytes(384)))

trio.run(main)
"""


async def test_workers_end_when_their_peer_is_killed_even_inside_a_plugin(install, tmp_path: Path):
    install("stuck", "@hookimpl\ndef nsllm_validate(text):\n    time.sleep(3600)\n")
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    parent = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert (await parent.stdout.receive_some(10)).startswith(b"up")
    children = [c for c in psutil.Process(parent.pid).children(recursive=True) if "nsllm.plugins.worker" in c.cmdline()]
    assert len(children) == 2
    parent.kill()
    await parent.wait()
    gone, alive = await trio.to_thread.run_sync(lambda: psutil.wait_procs(children, timeout=30))
    assert (len(gone), alive) == (2, [])
