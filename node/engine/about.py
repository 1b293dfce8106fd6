"""What a model folder is, for people: architecture, parameters, context, licence, digest. Reads files only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nsllm.node.engine.card import read_text_info
from nsllm.node.engine.choice import choose
from nsllm.node.engine.devices import Way
from nsllm.node.engine.models import model_digest, model_dtype, read_config
from nsllm.node.engine.needs import worker_bytes
from nsllm.node.engine.origin import CARD, read_source
from nsllm.node.engine.weights import read_weights
from nsllm.node.errors import NodeError

TEXT: Final = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForImageTextToText")
"""How the architectures of models that write text end."""
MAX_CARD_BYTES: Final = 256 * 1024
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)
_LICENCE = re.compile(r"^license(?:_name)?:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class About:
    """One model folder. None means that the folder does not say."""

    name: str
    folder: str
    architecture: str | None
    parameters: int
    """Numbers that are stored; scales of quantized weights among them."""
    dtype: str
    context_tokens: int | None
    digest: str
    """Of the files, 0x…"""
    licence: str | None
    """As the model card's first lines state it: a claim of whoever wrote the card."""
    size_bytes: int
    """Everything in the folder."""
    chat_template: bool
    source: str | None
    """Such as `hub:org/name@commit`; None for a folder that was not put into the store by `nsllm model`."""


def read_about(folder: Path) -> About:
    """Describe the model in `folder`; digests its files, which takes a while for a large one the first time.

    Raises:
        ModelMissingError: no usable model there, or one that was not written to its end.
    """
    config = read_config(folder)
    weights = read_weights(folder)
    architectures = config.get("architectures")
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    context = (text or {}).get("max_position_embeddings") or (text or {}).get("n_positions")
    return About(
        name=folder.name,
        folder=str(folder),
        architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else None,
        parameters=weights.parameters,
        dtype=model_dtype(config),
        context_tokens=context if isinstance(context, int) else None,
        digest="0x" + model_digest(folder).hex(),
        licence=read_licence(folder),
        size_bytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
        chat_template=_has_chat_template(folder),
        source=read_source(folder),
    )


@dataclass(frozen=True, slots=True)
class Runs:
    """How a worker of this machine would run a text model."""

    path: Way
    dtype: str
    digest: str
    """That names the model in records then, 0x…"""
    memory_mb: int
    """About as much as its worker takes, with room for keys and values."""


def read_runs(about: About, cache_mb: int) -> Runs | None:
    """How the model would run with `cache_mb` for keys and values; None if it is no text model that runs here."""
    if not writes_text(about.architecture):
        return None
    folder = Path(about.folder)
    try:
        choice = choose(folder, "auto")
        info = read_text_info(folder, choice)
        size_bytes = worker_bytes(folder, choice, cache_mb)
    except NodeError:
        return None
    return Runs(
        path=choice.path,
        dtype=info.dtype,
        digest="0x" + info.digest.hex(),
        memory_mb=size_bytes >> 20,
    )


def writes_text(architecture: str | None) -> bool:
    """Whether a model of this architecture, as transformers calls it, writes text.

    >>> writes_text("LlamaForCausalLM"), writes_text("BertModel")
    (True, False)
    """
    return architecture is not None and architecture.endswith(TEXT)


def read_licence(folder: Path) -> str | None:
    """The licence that the folder's model card names in its front matter, as the Hugging Face hub reads it."""
    try:
        with (folder / CARD).open("rb") as file:
            card = file.read(MAX_CARD_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    front = _FRONT_MATTER.match(card)
    names = _LICENCE.findall(front[1]) if front else []
    return next((name for name in names if name != "other"), names[0] if names else None)


def _has_chat_template(folder: Path) -> bool:
    beside = (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file()
    return beside or bool(_json(folder / "tokenizer_config.json").get("chat_template"))


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
