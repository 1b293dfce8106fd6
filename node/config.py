"""Settings of a peer: frozen dataclasses with defaults and units, read from `config.toml`, overridden by flags.

Precedence, weakest first: defaults, the environment (`NSLLM_HOME`), the file, flags. Unknown settings are refused by
name. Relative paths in the file are relative to the file's folder. Secrets never stand in `effective`.
"""

# `setting` makes dataclass fields, never shared values:
# ruff: noqa: RUF009

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

from nsllm.consensus.registry import Role
from nsllm.content import redact
from nsllm.node.engine.devices import Devices, Parallel, Wish
from nsllm.node.engine.models import default_home
from nsllm.node.errors import ConfigError
from nsllm.record import Visibility

logger = logging.getLogger(__name__)

T = TypeVar("T")
LogLevel = Literal["debug", "info", "warning", "error"]
Hearing = Literal["meaning", "wording"]

CONFIG_FILE: Final = "config.toml"
GENESIS_FILE: Final = "genesis.json"
DEFAULT_PORT: Final = 8700


def setting(default: T, doc: str, *, unit: str = "", least: int | None = None, most: int | None = None) -> T:
    """A documented dataclass field; type checkers see its default value.

    Args:
        default: value where nothing sets it.
        doc: one sentence for the settings table.
        unit: such as `tokens`; empty where there is none.
        least: smallest value of a number, or of a text's or list's length.
        most: largest value of the same.
    """
    metadata = {"doc": doc, "unit": unit, "least": least, "most": most}
    return field(default=default, metadata=metadata)


def stored(doc: str) -> Path | None:
    """A setting that names a model: a folder, or a model of the store."""
    return field(default=None, metadata={"doc": doc, "stored": True})


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """The HTTP side: OpenAI-compatible API, receipts and the status page."""

    host: str = setting("127.0.0.1", "Address that the API and the page listen on; beyond loopback a key is required.")
    port: int = setting(DEFAULT_PORT, "TCP port of the API and the page; 0 picks a free one.", least=0, most=65535)
    key: str = field(
        default="",
        repr=False,
        metadata={"doc": "API key that clients send as a bearer token; empty: none (loopback only).", "secret": True},
    )
    allowed_hosts: tuple[str, ...] = setting(
        (), "Host header names to accept beside loopback names and `host`.", most=64
    )


@dataclass(frozen=True, slots=True)
class P2pConfig:
    """The libp2p side."""

    listen: tuple[str, ...] = setting(
        (), "Multiaddrs to listen on; empty: a free TCP port on all interfaces, chosen once and kept.", most=16
    )
    bootstrap: tuple[str, ...] = setting(
        (), "Multiaddrs ending in /p2p/<id> that are dialled at start and again when a peer is lost.", most=64
    )
    announce: tuple[str, ...] = setting(
        (),
        "Multiaddrs, without /p2p/<id>, that others are told instead of those listened on, such as a router's that"
        " forwards a port; empty: those listened on.",
        most=8,
    )


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What runs the models."""

    text_model: Path | None = stored("Text model: a folder, or a name of `nsllm model list`; unset: the default.")
    encoder_model: Path | None = stored("Encoder: a folder, or a name of the same list; unset: the default.")
    backend: Wish = setting(
        "auto",
        "Path of the text model: fast (Llama family, int8 on the CPU), batched (the same on a GPU), general, or what"
        " suits.",
    )
    threads: int = setting(
        0,
        "CPU threads of the model worker; 0: the machine's cores, at most 8 (a devnet's peers share them).",
        unit="threads",
        least=0,
        most=1024,
    )
    cache_mb: int = setting(
        512,
        "Memory for keys and values on the fast and batched paths; two full contexts have room in any case.",
        unit="MB",
        least=1,
        most=1_000_000,
    )
    memory_mb: int = setting(
        0,
        "Memory of all model workers together, as estimated from the models' files; 0: whatever is free.",
        unit="MB",
        least=0,
        most=100_000_000,
    )
    max_active: int = setting(64, "Generations that run at the same time.", unit="generations", least=1, most=1024)
    max_queue: int = setting(64, "Generations that wait; more are answered with 429.", unit="generations", least=0)
    max_wait_s: int = setting(
        30,
        "Who would probably wait longer until an answer begins, or is judged in its turn, is answered with 429.",
        unit="seconds",
        least=1,
        most=3600,
    )
    max_tokens_default: int = setting(
        256, "Length of an answer where the request does not say.", unit="tokens", least=1, most=1_000_000
    )
    parallel: Parallel = setting(
        "none", "How a model of the general path is spread over several devices: layer after layer, or each layer cut."
    )
    devices: tuple[str, ...] = setting(
        (),
        "Devices of the batched or general path, such as `cuda:0`; empty: a GPU for the batched path, or the CPU.",
        most=64,
    )
    upstream_url: str = setting(
        "",
        "OpenAI-compatible server that writes the answers (vLLM, SGLang, llama-server, Ollama); empty: none.",
        most=512,
    )
    upstream_model: str = setting("", "Model of the upstream, as its `/v1/models` lists it.", most=256)
    upstream_key: str = field(
        default="",
        repr=False,
        metadata={"doc": "API key of the upstream; empty: none.", "secret": True, "most": 512},
    )
    upstream_first_token_s: int = setting(
        120,
        "Longest wait for the upstream's first token: its queue and the prompt.",
        unit="seconds",
        least=1,
        most=3600,
    )
    upstream_between_tokens_s: int = setting(
        30, "Longest silence of the upstream in mid-answer.", unit="seconds", least=1, most=3600
    )

    def spread(self) -> Devices:
        """Where the text model runs.

        Raises:
            ConfigError: devices that do not fit each other, or the chosen path.
        """
        devices = Devices(self.parallel, self.devices)
        devices.check_path(self.backend)
        return devices

    def upstream_base(self) -> str:
        """The upstream's URL up to and including `/v1`; empty if there is none.

        Raises:
            ConfigError: not a plain http or https URL, or settings that do not belong together.
        """
        if not self.upstream_url:
            if self.upstream_model or self.upstream_key:
                raise ConfigError(
                    "engine.upstream_model or engine.upstream_key is set, but engine.upstream_url is not",
                    hint="set engine.upstream_url, or leave all of them out",
                )
            return ""
        if not _is_plain_url(self.upstream_url):
            raise ConfigError(
                f"engine.upstream_url is no plain http or https address ({redact(self.upstream_url)})",
                hint='such as "http://127.0.0.1:8000/v1"; the key belongs into engine.upstream_key',
            )
        if not self.upstream_model:
            raise ConfigError(
                "engine.upstream_url is set, but engine.upstream_model is not",
                hint="name one of the models that the upstream's /v1/models lists",
            )
        if not self.upstream_key.isascii():
            raise ConfigError(f"engine.upstream_key is no key: it is not ASCII ({redact(self.upstream_key)})")
        return self.upstream_url.rstrip("/").removesuffix("/v1") + "/v1"


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """Records that this peer stores, and when an answer of the cache stands in for a generation."""

    max_mb: int = setting(
        4096,
        "Disk space for records; beyond it those leave that others hold now, then those of the least value.",
        unit="MB",
        least=16,
        most=100_000_000,
    )
    semantic: bool = setting(
        default=True, doc="Whether answers to like questions stand in for a generation; exact repeats always do."
    )
    max_wrong_ppm: int = setting(
        20_000,
        "Share of wrong answers among semantic hits that is accepted; requests may say `max_wrong_rate`.",
        unit="ppm",
        least=0,
        most=500_000,
    )


@dataclass(frozen=True, slots=True)
class DocumentsConfig:
    """Documents that this peer shares and holds, and when answers read them."""

    max_mb: int = setting(
        1024,
        "Disk space for chunks of documents, own and held for others; one other member has at most a quarter of it.",
        unit="MB",
        least=16,
        most=100_000_000,
    )
    retrieve: int = setting(
        0,
        "Passages that answers read where a request does not say `retrieve`; 0: none.",
        unit="passages",
        least=0,
        most=8,
    )
    passage_tokens: int = setting(
        768, "Of a prompt, at most so much is passages.", unit="tokens", least=64, most=1_000_000
    )


@dataclass(frozen=True, slots=True)
class LedgerConfig:
    """What this peer keeps of the network's history."""

    keep_heights: int = setting(
        10_000,
        "Blocks that are kept; older ones give way to a certified snapshot; receipts stay, see `history`. 0: keep all.",
        unit="blocks",
        least=0,
        most=1_000_000_000,
    )


@dataclass(frozen=True, slots=True)
class HistoryConfig:
    """What this peer keeps of its own past."""

    completions: int = setting(
        100_000,
        "Finished completions kept, with records and proofs; the oldest go, but for the last hour's. 0: keep all.",
        unit="completions",
        least=0,
        most=1_000_000_000,
    )
    days: int = setting(
        365, "How long finished completions are kept; then receipts are no longer given out. 0: for ever.",
        unit="days", least=0, most=36_500,
    )  # fmt: skip
    log_entries: int = setting(
        500_000,
        "Entries of this peer's own log that are kept, and all since its last checkpoint in a block. 0: keep all.",
        unit="entries",
        least=0,
        most=1_000_000_000,
    )


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """Plugins beside the built-in ones."""

    enabled: tuple[str, ...] = setting(
        (),
        "Entry point names (group `nsllm.plugins`) to run in the plugin worker; installed alone does nothing.",
        most=64,
    )


def models_home() -> Path:
    """Where models live, from the environment."""
    return default_home(os.environ).absolute()


def default_data_dir() -> Path:
    """Where a peer lives unless told otherwise: `$XDG_DATA_HOME/nsllm`, or `~/.local/share/nsllm`."""
    share = os.environ.get("XDG_DATA_HOME")
    return (Path(share) if share else Path.home() / ".local" / "share") / "nsllm"


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """All settings of one peer. Make it with `nsllm.node.settings.load_config`, which reads and checks the file."""

    data_dir: Path = field(metadata={"doc": "Folder of keys, genesis, store and logs (flag only).", "flag_only": True})
    home: Path = field(
        default_factory=models_home,
        metadata={"doc": "Folder of the model cache; the environment's `NSLLM_HOME`.", "flag_only": True},
    )
    name: str = setting("peer", "What the page and the log call this peer.", least=1, most=64)
    genesis: Path | None = setting(None, "Genesis file; unset: `genesis.json` in the data folder.")
    roles: tuple[Role, ...] = setting(
        ("contributor", "data", "validator"), "Roles that this peer takes up, within what the registry grants it.",
        least=1, most=3,
    )  # fmt: skip
    visibility: Visibility = setting("private", "Visibility of requests that do not say; a devnet sets `public`.")
    group: str = setting("", "Group of `group` requests that name none; empty: the only one there is.", most=32)
    judge_private: Hearing = setting(
        "meaning",
        "What safety layers hear of private requests: `meaning` embeds them as all others, `wording` costs less.",
    )
    log_level: LogLevel = setting("info", "Least severe messages that are logged.")
    api: ApiConfig = field(default_factory=ApiConfig)
    p2p: P2pConfig = field(default_factory=P2pConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    documents: DocumentsConfig = field(default_factory=DocumentsConfig)
    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    plugins: PluginConfig = field(default_factory=PluginConfig)

    def __post_init__(self) -> None:
        self.engine.upstream_base()
        self.engine.spread()
        if not self.api.key and not is_loopback(self.api.host):
            raise ConfigError(
                f"api.host is {self.api.host!r}, beyond loopback, and there is no api.key: anybody who reaches this"
                " port could use the model",
                hint="set api.key in config.toml, or keep api.host at 127.0.0.1",
            )
        if list(self.roles) != sorted(set(self.roles)):
            object.__setattr__(self, "roles", tuple(sorted(set(self.roles))))

    @property
    def genesis_path(self) -> Path:
        """The genesis file in force."""
        return self.genesis or self.data_dir / GENESIS_FILE

    def effective(self) -> dict[str, str | int | bool]:
        """Every setting by its dotted name, for the log at start and `--json`; secrets only as set or not set."""
        shown: dict[str, str | int | bool] = {}
        for name, spec, value in walk(self):
            if spec.metadata.get("secret"):
                shown[name] = redact(str(value)) if value else ""
            elif isinstance(value, tuple):
                shown[name] = ",".join(str(item) for item in value)
            elif isinstance(value, bool | int):
                shown[name] = value
            else:
                shown[name] = "" if value is None else str(value)
        return shown

    def log_effective(self) -> None:
        """One line at start with every effective setting, no secrets."""
        line = " ".join(f"{name}={value}" for name, value in self.effective().items())
        logger.info("settings %s", line)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_plain_url(url: str) -> bool:
    """Scheme, host, perhaps a port and a path; no user, query or fragment.

    >>> _is_plain_url("http://vllm:8000/v1"), _is_plain_url("http://me:secret@vllm/v1"), _is_plain_url("file:///etc")
    (True, False, False)
    """
    try:
        parts = urlsplit(url)
        plain = (
            parts.port != 0 and parts.hostname and "@" not in parts.netloc and not parts.query and not parts.fragment
        )
    except ValueError:  # a port or an address that is none
        return False
    return bool(plain) and parts.scheme in {"http", "https"}


def walk(config: Any, prefix: str = "") -> list[tuple[str, Any, object]]:
    """(dotted name, dataclass field, value) of every setting, in the order of declaration."""
    found: list[tuple[str, Any, object]] = []
    for spec in fields(config):
        value = getattr(config, spec.name)
        if hasattr(value, "__dataclass_fields__"):
            found.extend(walk(value, f"{prefix}{spec.name}."))
        else:
            found.append((prefix + spec.name, spec, value))
    return found


Overrides = Mapping[str, object]
"""Dotted setting names to values of the setting's own type, as flags give them; None means not given."""
