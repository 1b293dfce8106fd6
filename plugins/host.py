"""PluginHost: built-in plugins in one worker process, each enabled third-party plugin in a process of its own.

A third-party plugin that raises, returns nonsense, hangs or crashes costs itself only: its measures are left out, and
after three failures in a row it is disabled with a reason. The built-in layers fail closed: if they cannot answer, the
caller gets `SafetyUnavailableError`, and their worker is restarted for as long as the host runs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import trio

from nsllm import canonical
from nsllm.governance.defaults import built_in_rule_sets
from nsllm.governance.errors import SafetyUnavailableError
from nsllm.governance.hybrid_score import AnswerItem
from nsllm.governance.policy import RuleSet
from nsllm.governance.validation import COHERENCE, TOXICITY, Measure
from nsllm.governance.validator import TextItem
from nsllm.ids import Ppm
from nsllm.plugins.errors import PluginMissingError, WorkerError
from nsllm.plugins.hookspecs import ENTRY_POINT_GROUP
from nsllm.plugins.link import WorkerLimits, WorkerLink
from nsllm.plugins.port import PluginInfo
from nsllm.plugins.wire import Call, Reply

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # where the installed stubs of trio keep it

log = logging.getLogger(__name__)

BUILT_IN: Final = "built-in"
MAX_ENABLED: Final = 8
REMEMBERED: Final = 4096
"""Questions whose measures are remembered, some 500 bytes each."""


class PluginHost:
    """Runs and asks the plugin workers; `run` must be running while it is asked."""

    def __init__(self, enabled: Sequence[str] = (), *, limits: WorkerLimits | None = None) -> None:
        """Check that what the operator enabled is installed; nothing is imported or started yet.

        Args:
            enabled: names of third-party plugins, as their entry points call them.
            limits: time and memory of a worker.

        Raises:
            PluginMissingError: a name that no installed distribution offers, or that more than one offers.
        """
        limits = limits or WorkerLimits()
        self._origins = {name: _origin(name, enabled) for name in enabled}
        self._built_in = WorkerLink(BUILT_IN, built_in=True, limits=limits)
        self._heard: OrderedDict[bytes, Reply] = OrderedDict()
        """What the built-in layers said of questions, by a digest of each: the same ones come again and again."""
        self._others = tuple(WorkerLink(name, built_in=False, limits=limits) for name in enabled)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start every worker and keep them alive until cancelled; `started` once each has started or failed to.

        On the way out every worker is killed and reaped.
        """
        async with trio.open_nursery() as nursery:
            for link in (self._built_in, *self._others):
                nursery.start_soon(link.run)
            for link in (self._built_in, *self._others):
                await link.settled.wait()
            for row in self.info():
                log.info("plugin name=%s version=%s origin=%r state=%s", row.name, row.version, row.origin, row.state)
            task_status.started()

    async def validate(self, item: TextItem) -> tuple[Measure, ...]:
        """What every layer measures, built-in layers first; a failing third-party layer is left out.

        Raises:
            SafetyUnavailableError: the built-in layers cannot answer.
        """
        replies = await self._ask(Call(text=item))
        return tuple(measure for reply in replies for measure in reply.measures)

    async def score(self, item: AnswerItem) -> dict[str, Ppm]:
        """Every dimension that somebody measured; a failing third-party scorer is left out.

        Raises:
            SafetyUnavailableError: the built-in scorers cannot answer.
        """
        replies = await self._ask(Call(answer=item))
        return {dimension.name: dimension.ppm for reply in reversed(replies) for dimension in reply.scores}

    def rule_sets(self) -> tuple[RuleSet, ...]:
        """Rules and weights of the built-in plugins."""
        return built_in_rule_sets()

    def info(self) -> tuple[PluginInfo, ...]:
        """Every plugin with its present state."""
        rows = []
        for link in (self._built_in, *self._others):
            names = (COHERENCE, TOXICITY) if link.built_in else (link.name,)
            known = {identity.name: identity for identity in link.identities}
            for name in names:
                identity = known.get(name)
                rows.append(
                    PluginInfo(
                        name=name,
                        version=identity.version if identity else "",
                        description=identity.description if identity else "",
                        origin=self._origins.get(name, BUILT_IN),
                        state=link.state,
                        reason=link.reason,
                        restarts=link.restarts,
                    )
                )
        return tuple(rows)

    async def _ask(self, call: Call) -> list[Reply]:
        """Replies, the built-in worker's first; all workers are asked at once."""
        replies: dict[str, Reply] = {}
        problem = ""

        async def ask(link: WorkerLink) -> None:
            nonlocal problem
            try:
                replies[link.name] = await (self._built_in_reply(call) if link.built_in else _asked(link, call))
            except WorkerError as error:
                if link.built_in:
                    problem = error.message

        others = [link for link in self._others if not link.disabled]
        if others:
            async with trio.open_nursery() as nursery:
                for link in (self._built_in, *others):
                    nursery.start_soon(ask, link)
        else:
            await ask(self._built_in)
        if BUILT_IN not in replies:
            raise SafetyUnavailableError(problem, hint="retry in a moment; the worker is being restarted")
        ordered = [BUILT_IN, *(link.name for link in self._others)]
        return [replies[name] for name in ordered if name in replies]

    async def _built_in_reply(self, call: Call) -> Reply:
        """Of the built-in layers, which always say the same of the same; plugins of others may not.

        Raises:
            WorkerError: they cannot answer.
        """
        if call.text is None or call.text.stage != "input":
            return await _asked(self._built_in, call)
        digest = hashlib.sha256(canonical.encode(call.text)).digest()
        reply = self._heard.pop(digest, None) or await _asked(self._built_in, call)
        self._heard[digest] = reply
        if len(self._heard) > REMEMBERED:
            self._heard.popitem(last=False)
        return reply


async def _asked(link: WorkerLink, call: Call) -> Reply:
    return _own_names(link, await link.call(call))


def _own_names(link: WorkerLink, reply: Reply) -> Reply:
    """A third-party worker speaks under its own name only: the process is not trusted to have put it there.

    Raises:
        WorkerError: it used another name.
    """
    names = [measure.layer for measure in reply.measures] + [dimension.name for dimension in reply.scores]
    wrong = [name for name in names if not link.built_in and not name.startswith(f"{link.name}.")]
    if wrong:
        raise WorkerError(f"plugin worker {link.name} spoke as {wrong[0]}")
    return reply


def _origin(name: str, enabled: Sequence[str]) -> str:
    """Distribution and version that offer a plugin, from installed metadata alone."""
    found = tuple(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name))
    if name in (COHERENCE, TOXICITY, BUILT_IN) or list(enabled).count(name) > 1 or len(enabled) > MAX_ENABLED:
        raise PluginMissingError(
            f"plugin {name} cannot be enabled", hint=f"built-in names are taken; each name once, {MAX_ENABLED} at most"
        )
    if len(found) != 1:
        offered = sorted({point.name for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)})
        raise PluginMissingError(
            f"{len(found)} installed distributions offer plugin {name}, expected one",
            hint=f"installed: {', '.join(offered) or 'none'}",
        )
    distribution = found[0].dist
    return f"{distribution.name} {distribution.version}" if distribution else "unknown distribution"
