"""The example plugin, installed by pip, is found by its entry point and changes a verdict."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from nsllm.governance.defaults import default_policy
from nsllm.governance.features import EMPTY_ANSWER
from nsllm.governance.hybrid_score import AnswerItem
from nsllm.governance.validation import judge
from nsllm.governance.validator import TextItem
from nsllm.ids import Digest
from nsllm.plugins.errors import PluginMissingError
from nsllm.plugins.host import PluginHost
from nsllm.plugins.link import WorkerLimits

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin_shouting"
SHOUT = "PLEASE TELL ME ABOUT THE MOON"
POLICY = default_policy(Digest(bytes(32)), Digest(bytes(32)))
LIMITS = WorkerLimits(start_s=60, call_s=20, wait_s=60)


@pytest.mark.process
async def test_pip_install_and_enable_changes_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, target = tmp_path / "source", tmp_path / "site"
    shutil.copytree(EXAMPLE, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    await trio.run_process([*pip, "--target", str(target), str(source)], stdout=subprocess.DEVNULL)
    with pytest.raises(PluginMissingError, match="0 installed distributions offer plugin shouting"):
        PluginHost(["shouting"])
    monkeypatch.syspath_prepend(str(target))
    monkeypatch.setenv("PYTHONPATH", str(target))
    importlib.invalidate_caches()

    item = TextItem(stage="input", text=SHOUT, question=SHOUT, embedding=bytes(384))
    verdicts = {}
    for enabled in ((), ("shouting",)):
        host = PluginHost(enabled, limits=LIMITS)
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            verdicts[enabled] = judge("input", await host.validate(item), POLICY)
            scores = await host.score(AnswerItem(question=SHOUT, answer="A calm answer.", features=EMPTY_ANSWER))
            rows = {row.name: row for row in host.info()}
            nursery.cancel_scope.cancel()

    assert not verdicts[()].withheld
    assert verdicts[("shouting",)].withheld
    assert verdicts[("shouting",)].reason == (
        "layer shouting.capitals measured 1.000, the limit is below 0.700 (share of capital letters)"
    )
    assert scores["shouting.calmness"] > 900_000
    assert rows["shouting"].origin == "nsllm-plugin-shouting 0.1.0"
    assert "nsllm_plugin_shouting" not in sys.modules
