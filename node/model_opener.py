"""Workers for text models, made as the settings say: that of the start, and those that are loaded later."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Final

import psutil

from nsllm.node.config import EngineConfig
from nsllm.node.engine.about import writes_text
from nsllm.node.engine.choice import choose
from nsllm.node.engine.models import read_config
from nsllm.node.engine.needs import worker_bytes
from nsllm.node.engine.pool import Candidate
from nsllm.node.engine.store import find, list_models
from nsllm.node.engine.supervisor import WorkerEngine
from nsllm.node.engine.threads import machine_threads
from nsllm.node.errors import ConfigError, InvalidRequestError, UnknownModelError

CGROUP: Final = Path("/sys/fs/cgroup")


class ModelOpener:
    """Opens models of the store.

    Args:
        home: `$NSLLM_HOME`.
        config: threads, room for keys and values, queue and the rest, the same for every worker.
        encoder: folder of the encoder.
        rng: source of seeds.
    """

    def __init__(self, home: Path, config: EngineConfig, encoder: Path, rng: random.Random) -> None:
        self._home = home
        self._config = config
        self._encoder = encoder
        self._rng = rng

    def worker(self, text: Path) -> WorkerEngine:
        """An engine for the model in `text`; nothing runs yet. Blocks: the files are digested.

        Raises:
            ModelMissingError, ConfigError: it cannot be run.
        """
        config = self._config
        return WorkerEngine(
            text=text,
            encoder=self._encoder,
            backend=config.backend,
            devices=config.spread(),
            threads=config.threads or machine_threads(),
            cache_mb=config.cache_mb,
            max_queue=config.max_queue,
            max_wait_s=config.max_wait_s,
            max_active=config.max_active,
            max_tokens=config.max_tokens_default,
            rng=self._rng,
        )

    def base(self, text: Path) -> tuple[WorkerEngine, int]:
        """The engine of the start, and the bytes that its worker takes. Blocks.

        Raises:
            ModelMissingError, ConfigError: it cannot be run, or not within `engine.memory_mb`.
        """
        needed_bytes = self._needed_bytes(text)
        if 0 < self._config.memory_mb << 20 < needed_bytes:
            raise ConfigError(
                f"engine.memory_mb is {self._config.memory_mb}, the model in {text} needs about {needed_bytes >> 20}",
                hint="raise it, lower engine.cache_mb, or set engine.text_model to a smaller model",
            )
        return self.worker(text), needed_bytes

    def find(self, name: str) -> Candidate:
        """The model of the store that is called `name`. Blocks.

        Raises:
            UnknownModelError: there is none.
            InvalidRequestError: it writes no text.
            ModelMissingError, ConfigError: it cannot be run.
        """
        folder = find(self._home, name)
        if folder is None:
            known = ", ".join(repr(row.name) for row in list_models(self._home)) or "none"
            raise UnknownModelError(
                f"there is no model {name[:128]!r} in the store", hint=f"there are: {known}", param="model"
            )
        architecture = next(iter(read_config(folder).get("architectures") or ()), None)
        if not writes_text(architecture):
            raise InvalidRequestError(f"{name!r} ({architecture or 'not stated'}) writes no text", param="model")
        return Candidate(needed_bytes=self._needed_bytes(folder), open=partial(self.worker, folder))

    def _needed_bytes(self, folder: Path) -> int:
        config = self._config
        choice = choose(folder, config.backend, config.spread())
        return worker_bytes(folder, choice, config.cache_mb)


def free_bytes() -> int:
    """Memory that programs may still take here: of the machine, and of the control group that a container has."""
    free: int = psutil.virtual_memory().available
    try:
        limit, used = ((CGROUP / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        return min(free, int(limit) - int(used)) if limit != "max" else free
    except (OSError, ValueError):
        return free
