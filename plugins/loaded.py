"""A loaded plugin: hooks called through pluggy, results checked against the specification before they go anywhere."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar, cast

import msgspec
import pluggy
from msgspec import Meta

from nsllm.canonical import Value
from nsllm.governance.hybrid_score import AnswerItem
from nsllm.governance.validation import Measure
from nsllm.governance.validator import TextItem
from nsllm.ids import Ppm, PpmField
from nsllm.plugins.errors import HookResultError
from nsllm.plugins.hookspecs import PROJECT, HookSpecs

T = TypeVar("T", bound=Value)

MAX_RESULTS: Final = 16
"""Measures of one call, and dimensions of one call."""

PluginName = Annotated[str, Meta(min_length=1, max_length=31, pattern=r"^[a-z0-9][a-z0-9_-]*\Z")]
PartName = Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[a-z0-9][a-z0-9_-]*\Z")]
"""Plugin, dot and part stay within the 64 characters of a name on the wire."""


class Identity(Value, frozen=True, kw_only=True):
    """What `nsllm_info` returns."""

    name: PluginName
    version: Annotated[str, Meta(min_length=1, max_length=64)]
    description: Annotated[str, Meta(max_length=200)]


class _RawMeasure(Value, frozen=True, kw_only=True):
    name: PartName
    kind: Annotated[str, Meta(pattern=r"^(safety|quality)\Z")]
    ppm: PpmField
    limit_ppm: PpmField | None = None
    note: Annotated[str, Meta(max_length=200)] = ""


class LoadedPlugin:
    """One plugin in this process, behind a plugin manager of its own."""

    def __init__(self, plugin: object, *, name: str, built_in: bool) -> None:
        """Register `plugin` and ask who it is.

        Raises:
            HookResultError: it implements an unknown hook, a hook with unknown arguments, or calls itself otherwise
                than `name`.
        """
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(HookSpecs)
        try:
            manager.register(plugin, name=name)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise HookResultError(f"plugin {name}: {error}") from None
        self._hook: Any = manager.hook
        self._built_in = built_in
        self.identity = _typed(self._hook.nsllm_info(), Identity, "nsllm_info")
        if self.identity.name != name:
            raise HookResultError(f"plugin {name} calls itself {self.identity.name}")

    def validate(self, item: TextItem) -> tuple[Measure, ...]:
        """The plugin's measures of a text."""
        found = self._hook.nsllm_validate(
            stage=item.stage,
            text=item.text,
            question=item.question,
            embedding=item.embedding,
            features=None if item.features is None else _plain(item.features),
        )
        if found is None:
            return ()
        if not isinstance(found, list) or len(found) > MAX_RESULTS:
            raise HookResultError(f"nsllm_validate returned {_shape(found)}, expected a list of at most {MAX_RESULTS}")
        raw = [_typed(entry, _RawMeasure, "nsllm_validate") for entry in found]
        return tuple(
            Measure(
                layer=self._named(measure.name),
                kind="safety" if measure.kind == "safety" else "quality",
                ppm=measure.ppm,
                limit_ppm=measure.limit_ppm,
                note=measure.note,
            )
            for measure in raw
        )

    def score(self, item: AnswerItem) -> dict[str, Ppm]:
        """The plugin's dimensions of an answer."""
        found = self._hook.nsllm_score(question=item.question, answer=item.answer, features=_plain(item.features))
        if found is None:
            return {}
        if not isinstance(found, dict) or len(found) > MAX_RESULTS:
            raise HookResultError(f"nsllm_score returned {_shape(found)}, expected a dict of at most {MAX_RESULTS}")
        try:
            checked = msgspec.convert(found, dict[PartName, PpmField], strict=True)
        except msgspec.ValidationError as error:
            raise HookResultError(f"nsllm_score: {error}") from None
        return {self._named(name): checked[name] for name in sorted(checked)}

    def _named(self, part: str) -> str:
        """A built-in plugin's names stand alone; another's carry its own in front, so it cannot pass for a built-in."""
        return part if self._built_in else f"{self.identity.name}.{part}"


def _plain(value: Value) -> dict[str, Any]:
    return cast("dict[str, Any]", msgspec.to_builtins(value, builtin_types=(bytes,)))


def _typed(found: object, kind: type[T], hook: str) -> T:
    try:
        return msgspec.convert(found, kind, strict=True)
    except msgspec.ValidationError as error:
        raise HookResultError(f"{hook}: {error}") from None


def _shape(found: object) -> str:
    size = f" of {len(found)}" if isinstance(found, list | dict) else ""
    return f"{type(found).__name__}{size}"
