"""Reading, writing and tabling `config.toml`: every value checked against its setting, every fault named."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from nsllm.content import redact
from nsllm.files import read_bounded, write_atomic
from nsllm.node import config as declared
from nsllm.node.config import CONFIG_FILE, Overrides, PeerConfig, models_home, walk
from nsllm.node.engine.store import find
from nsllm.node.errors import ConfigError

MAX_CONFIG_BYTES: Final = 256 * 1024


def load_config(data_dir: Path, *, file: Path | None = None, overrides: Overrides | None = None) -> PeerConfig:
    """Settings of the peer in `data_dir`.

    Args:
        data_dir: the peer's folder; it need not exist yet.
        file: another file than `config.toml` in `data_dir`; it must exist.
        overrides: flags by dotted name, such as `{"api.port": 8700}`; None values are not given.

    Raises:
        ConfigError: an unknown setting (with the nearest known one), a wrong type or value (with the value).
        UsageError: the file cannot be read.
    """
    data_dir = data_dir.expanduser().absolute()
    path = file or data_dir / CONFIG_FILE
    plain = read_toml(path) if file is not None or path.exists() else {}
    values = _typed(PeerConfig, plain, where=str(path), base=path.absolute().parent, prefix="")
    for name, value in (overrides or {}).items():
        if value is not None:
            _put(values, name, value)
    config: PeerConfig = _build(PeerConfig, {**values, "data_dir": data_dir, "home": models_home()})
    return config


def read_toml(path: Path) -> dict[str, Any]:
    """The file as plain values.

    Raises:
        ConfigError: not TOML; says the line.
    """
    try:
        return tomllib.loads(read_bounded(path, limit_bytes=MAX_CONFIG_BYTES).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", hint="see the settings table in the documentation") from None


def save_config(config: PeerConfig, path: Path | None = None) -> Path:
    """Write every setting that differs from its default; `path` defaults to `config.toml` in the data folder."""
    target = path or config.data_dir / CONFIG_FILE
    defaults = {name: value for name, _, value in walk(PeerConfig(data_dir=config.data_dir, home=config.home))}
    tables: dict[str, list[str]] = {}
    for name, spec, value in walk(config):
        if spec.metadata.get("flag_only") or value == defaults[name] or value is None:
            continue
        table, _, key = name.rpartition(".")
        tables.setdefault(table, []).append(f"{key} = {_toml(value)}")
    parts = [f"[{table}]\n" * bool(table) + "\n".join(lines) + "\n" for table, lines in sorted(tables.items())]
    write_atomic(target, ("# Settings of this peer; unset ones have their defaults.\n" + "\n".join(parts)).encode())
    return target


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    # JSON's strings are TOML's basic strings, but for DEL, which no setting may hold.
    return str(value) if isinstance(value, int) else json.dumps(str(value), ensure_ascii=False)


def _typed(kind: type[Any], plain: Mapping[str, Any], *, where: str, base: Path, prefix: str) -> dict[str, Any]:
    """Plain TOML values as the types of `kind`'s fields; nested tables stay dictionaries until `_build`."""
    hints = get_type_hints(kind)
    specs = {spec.name: spec for spec in fields(kind) if not spec.metadata.get("flag_only")}
    found: dict[str, Any] = {}
    for key, value in plain.items():
        name = prefix + key
        if key not in specs:
            raise ConfigError(f"{where}: there is no setting {name!r}", hint=_nearest(name))
        if is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {name} is {_shown(value)}, expected a table [{name}]")
            found[key] = _typed(_class(hints[key]), value, where=where, base=base, prefix=f"{name}.")
        else:
            found[key] = _value(name, hints[key], value, specs[key].metadata, f"{where}: ", base)
    return found


def _class(kind: Any) -> type[Any]:
    assert isinstance(kind, type)
    return kind


def _nearest(name: str) -> str:
    known = [
        row for row, spec, _ in walk(PeerConfig(data_dir=Path(), home=Path())) if not spec.metadata.get("flag_only")
    ]
    by_leaf = {row.rpartition(".")[2]: row for row in known}
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:
        leaf = difflib.get_close_matches(name.rpartition(".")[2], by_leaf, n=1, cutoff=0.6)
        close = [by_leaf[leaf[0]]] if leaf else []
    return f"did you mean {close[0]!r}?" if close else f"known settings: {', '.join(known)}"


def _value(name: str, kind: Any, value: object, meta: Mapping[str, Any], where: str, base: Path) -> Any:
    """One value, checked; `base` is the folder that a relative path starts from. One return a kind."""
    shown = redact(str(value)) if meta.get("secret") else _shown(value)
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if value not in choices:
            raise ConfigError(f"{where}{name} is {shown}, expected one of {', '.join(map(str, choices))}")
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}{name} is {shown}, expected a list")
        _bounds(len(value), meta, f"{where}{name} has {len(value)} entries")
        return tuple(_value(f"{name}[{i}]", get_args(kind)[0], item, {}, where, base) for i, item in enumerate(value))
    if kind is int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"{where}{name} is {shown}, expected a whole number")
        _bounds(value, meta, f"{where}{name} is {value}")
        return value
    if not isinstance(value, str | Path):
        raise ConfigError(f"{where}{name} is {shown}, expected text in quotes")
    if kind is str:
        if any(ord(sign) < 32 or ord(sign) == 127 for sign in str(value)):
            raise ConfigError(f"{where}{name} is {shown}, with a control character in it")
        _bounds(len(str(value)), meta, f"{where}{name} has {len(str(value))} characters")
        return str(value)
    return _path(str(value), base, stored=meta.get("stored", False))


def _path(value: str, base: Path, *, stored: bool) -> Path:
    """A path below `base`; with `stored`, a bare name that is none there may name a model of the store."""
    path = base / Path(value).expanduser()
    kept = find(models_home(), value) if stored and value == path.name and not path.exists() else None
    return kept or path


def _bounds(number: int, meta: Mapping[str, Any], says: str) -> None:
    least, most = meta.get("least"), meta.get("most")
    if least is not None and number < least:
        raise ConfigError(f"{says}, the least is {least}")
    if most is not None and number > most:
        raise ConfigError(f"{says}, the most is {most}")


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _put(values: dict[str, Any], name: str, value: object) -> None:
    """Set a dotted name from a flag, checked as the file's values are; relative paths start at the working folder."""
    kind: Any = PeerConfig
    *tables, leaf = name.split(".")
    target = values
    for table in tables:
        kind = get_type_hints(kind)[table]
        target = target.setdefault(table, {})
    spec = next(spec for spec in fields(kind) if spec.name == leaf)
    target[leaf] = _value(name, get_type_hints(kind)[leaf], value, spec.metadata, "", Path.cwd())


def _build(kind: type[Any], values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    return kind(**{k: _build(hints[k], v) if is_dataclass(hints[k]) else v for k, v in values.items()})


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One line of the settings table."""

    name: str
    kind: str
    default: str
    unit: str
    doc: str


def settings_rows() -> tuple[SettingRow, ...]:
    """Every setting of `config.toml`, in the order of declaration; the documentation is made from it."""
    sample = PeerConfig(data_dir=Path(), home=Path())
    rows: list[SettingRow] = []
    for name, spec, value in walk(sample):
        if spec.metadata.get("flag_only"):
            continue
        kind = str(spec.type).replace("tuple[str, ...]", "list of text").replace("tuple[Role, ...]", "list of roles")
        kind = {"str": "text", "int": "number", "Path | None": "path"}.get(kind, kind)
        choices = get_args(getattr(declared, kind, None))
        if choices:
            kind = f"{', '.join(choices[:-1])} or {choices[-1]}"
        shown = ", ".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
        unit = spec.metadata.get("unit", "")
        rows.append(SettingRow(name=name, kind=kind, default=shown, unit=unit, doc=spec.metadata["doc"]))
    return tuple(rows)


def settings_table() -> str:
    """The settings table in Markdown, for the documentation."""
    lines = ["| setting | kind | default | unit | meaning |", "|---|---|---|---|---|"]
    for row in settings_rows():
        default = f"`{row.default}`" if row.default else "-"
        lines.append(f"| `{row.name}` | {row.kind} | {default} | {row.unit or '-'} | {row.doc} |")
    return "\n".join(lines) + "\n"
