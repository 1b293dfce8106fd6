"""Whatever a user can meet is documented: settings, endpoints, headers, hooks, errors, metrics, files, variables."""

from __future__ import annotations

import ast
import importlib
import inspect
import re

import pytest
from prometheus_client import CollectorRegistry

from nsllm.errors import NsllmError
from nsllm.node.api.endpoints import ENDPOINTS
from nsllm.node.api.instruments import ApiMetrics
from nsllm.node.metrics import PeerMetrics
from nsllm.node.settings import load_config, settings_rows
from nsllm.node.views import PeerEvent
from nsllm.plugins.hookspecs import HookSpecs
from nsllm.simulations.scenarios import SCENARIOS


@pytest.fixture
def page(repository):
    return lambda name: (repository / "docs" / f"{name}.md").read_text()


def sources(repository, *folders):
    return [path for folder in folders for path in sorted((repository / folder).rglob("*.py"))]


def test_settings(page):
    text = page("configuration")
    assert [row.name for row in settings_rows() if f"| `{row.name}` |" not in text] == []


def test_toml_blocks_are_settings_that_load(toml_block, tmp_path):
    if "[project]" in toml_block.text:  # the example plugin's own
        pytest.importorskip("tomllib").loads(toml_block.text)
        return
    file = tmp_path / "config.toml"
    file.write_text(toml_block.text)
    load_config(tmp_path, file=file)


def test_endpoints(page):
    text = page("api")
    paths = [endpoint.path.replace(":.+", "") for endpoint in ENDPOINTS]
    assert [path for path in paths if f"| `{path}` |" not in text] == []


def test_headers(page, repository):
    text = page("api").lower()
    names = {
        name.lower()
        for path in sources(repository, "node/api")
        for name in re.findall(r"[\"']([Xx]-[Nn][Ss][Ll][Ll][Mm]-[\w-]+)[\"']", path.read_text())
    }
    assert len(names) >= 8
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def test_hooks(page):
    text = page("plugins")
    for name, hook in vars(HookSpecs).items():
        if name.startswith("nsllm_"):
            arguments = list(inspect.signature(hook).parameters)[1:]
            assert f"### `{name}({', '.join(arguments)})`" in text
            assert [argument for argument in arguments if f"- `{argument}`:" not in text] == []


def test_errors(page, repository, tables):
    """Also those that are defined outside of a room's errors.py; the import finds what is an error of ours."""
    text = page("api")
    missing, known = [], 0
    for path in sources(repository, "src/nsllm/cli", *tables.ROOMS) + sorted((repository / "src/nsllm").glob("*.py")):
        if not re.search(r"^class \w+\(.*(?:Error|Fault|Exception)\b.*\):", path.read_text(), re.MULTILINE):
            continue
        inner = path.relative_to(repository).with_suffix("").as_posix().removeprefix("src/nsllm/").replace("/", ".")
        for kind in vars(importlib.import_module(f"nsllm.{inner}")).values():
            ours = inspect.isclass(kind) and issubclass(kind, NsllmError) and kind.__module__ == f"nsllm.{inner}"
            if ours and kind.__name__ != "ApiError":  # its code is each raiser's
                known += 1
                if f"| `{kind.code}` | `{kind.__name__}` |" not in text:
                    missing.append(kind.__name__)
    assert known > 50
    assert missing == []


def test_error_trees_name_every_error_of_their_room(repository, tables):
    for room in tables.ROOMS:
        path = repository / room / "errors.py"
        tree = ast.get_docstring(ast.parse(path.read_text())) or ""
        defined = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        assert [name for name in defined if name not in tree] == [], path


def test_metrics(page):
    registry = CollectorRegistry()
    PeerMetrics(registry).count(PeerEvent("block", 0, {}))
    ApiMetrics(registry)
    text = page("operations")
    families = {family.name for family in registry.collect()}
    missing = [name for name in families if f"| `{name}` |" not in text and f"| `{name}_total` |" not in text]
    assert missing == []


def test_events(page, repository):
    text = page("operations")
    calls = [re.findall(r"\bemit\(\s*\"(\w+)\"", path.read_text()) for path in sources(repository, "node")]
    kinds = {kind for found in calls for kind in found}
    assert len(kinds) > 15
    assert [kind for kind in sorted(kinds) if f"| `{kind}` |" not in text] == []


def test_scenarios(page):
    text = page("simulator")
    assert [name for name in SCENARIOS if f"\n`{name}`: " not in text] == []


def test_protocols(page, tables):
    text = page("protocols")
    modules = [path.stem for path, _ in tables.protocol_modules()]
    assert [name for name in modules if f"`/nsllm/{name}/1" not in text] == []


def test_files_of_the_data_folder(page, repository):
    text = page("operations")
    names = set()
    for path in sorted((repository / "node").glob("*.py")):
        source = path.read_text()
        names |= set(re.findall(r"\"(\w+\.sqlite|\w+\.key)\"", source))
        names |= set(re.findall(r"^[A-Z0-9_]*(?:FILE|LOCK_FILE|FOLDER): ?\w* ?= \"([\w.]+)\"", source, re.MULTILINE))
    assert {"ledger.sqlite", "member.key"} <= names
    rows = "\n".join(re.findall(r"^\| (`.*?) \|", text.partition("## Ports")[0], re.MULTILINE))
    assert [name for name in sorted(names) if name not in rows] == []


def test_environment_variables(page, repository, tables):
    text = page("configuration")
    found = set()
    for path in sources(repository, "src/nsllm/cli", *tables.ROOMS):
        found |= set(re.findall(r"[\"'](NSLLM_[A-Z_]+|XDG_[A-Z_]+)[\"']", path.read_text()))
    assert "NSLLM_HOME" in found
    assert [name for name in sorted(found) if f"`{name}`" not in text] == []


def test_chat_fields(page):
    """Every field that the API serves is named."""
    from nsllm.node.api import chat_body, formats, sampling_fields

    text = page("api")
    names = chat_body.ChatBody.__struct_fields__
    accounts = names[names.index("user") : names.index("request_id") + 1]
    unserved = {*chat_body.UNSERVED, *sampling_fields.UNSERVED, *formats.UNSERVED, *accounts}
    served = [name for name in names if name not in unserved]
    assert len(served) > 30
    assert [name for name in served if f"`{name}" not in text] == []
