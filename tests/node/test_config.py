"""Settings: what a file may say, what flags override, and how faults are named."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsllm.node.config import ApiConfig, EngineConfig, P2pConfig, PeerConfig, is_loopback
from nsllm.node.errors import ConfigError
from nsllm.node.settings import load_config, save_config, settings_rows, settings_table


def written(folder: Path, text: str) -> Path:
    (folder / "config.toml").write_text(text)
    return folder


def test_without_a_file_everything_has_its_default(tmp_path: Path) -> None:
    config = load_config(tmp_path)
    assert config == PeerConfig(data_dir=tmp_path)
    assert config.visibility == "private"
    assert (config.api.host, config.api.port) == ("127.0.0.1", 8700)


def test_flags_override_the_file_which_overrides_defaults(tmp_path: Path) -> None:
    written(tmp_path, 'name = "lab"\n[api]\nport = 9000\n')
    config = load_config(tmp_path, overrides={"api.port": 9001, "name": None, "visibility": "public"})
    assert (config.name, config.api.port, config.visibility) == ("lab", 9001, "public")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[api]\nprot = 1", "there is no setting 'api.prot' (did you mean 'api.port'?)"),
        ("visibilty = 'x'", "did you mean 'visibility'?"),
        ("port = 8700", "there is no setting 'port' (did you mean 'api.port'?)"),
        ("zzz = 1", "known settings: name, genesis"),
        ("data_dir = '/x'", "there is no setting 'data_dir'"),
        ("[api]\nport = 'many'", 'api.port is "many", expected a whole number'),
        ("[api]\nport = true", "api.port is true, expected a whole number"),
        ("[api]\nport = 65536", "api.port is 65536, the most is 65535"),
        ("[engine]\nthreads = -1", "engine.threads is -1, the least is 0"),
        ("api = 3", "api is 3, expected a table [api]"),
        ("roles = ['chief']", 'roles[0] is "chief", expected one of contributor, data, validator'),
        ("roles = 'data'", 'roles is "data", expected a list'),
        ("roles = []", "roles has 0 entries, the least is 1"),
        ("visibility = 'secret'", 'visibility is "secret", expected one of private, group, public'),
        ('name = "a\\u0007b"', "with a control character"),
        ("name = ''", "name has 0 characters, the least is 1"),
        ("name", "is not TOML"),
        ("[api]\nhost = '0.0.0.0'", "beyond loopback, and there is no api.key"),
        ("[engine]\nupstream_url = 'http://vllm:8000'", "engine.upstream_model is not"),
        ("[engine]\nupstream_model = 'm'", "engine.upstream_url is not"),
        ("[engine]\nupstream_key = 'k'", "engine.upstream_url is not"),
        ("[engine]\nupstream_url = 'file:///etc'\nupstream_model = 'm'", "no plain http or https address"),
        ("[engine]\nupstream_url = 'http://x:y/v1'\nupstream_model = 'm'", "no plain http or https address"),
        ("[engine]\nupstream_url = 'http://a/v1?b'\nupstream_model = 'm'", "no plain http or https address"),
        ("[engine]\nupstream_url = 'http://a'\nupstream_model = 'm'\nupstream_key = 'ö'", "it is not ASCII"),
        ("[engine]\nupstream_url = 'http://a'\nupstream_model = 'm'\nupstream_between_tokens_s = 0", "the least is 1"),
    ],
)
def test_faults_are_named_with_their_value(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text))
    assert says in str(caught.value)


def test_a_key_never_shows(tmp_path: Path) -> None:
    key = "correct-horse-battery"
    config = load_config(written(tmp_path, f"[api]\nkey = '{key}'\nhost = '0.0.0.0'\n"))
    assert config.api.key == key
    assert key not in repr(config)
    assert key not in str(config.effective())
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, f'[api]\nkey = "{key}\\u0000"'))
    assert key not in str(caught.value)


def test_a_relative_path_starts_at_the_files_folder(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "my.toml").write_text("genesis = 'g.json'\n[engine]\ntext_model = 'm'\n")
    config = load_config(tmp_path / "peer", file=folder / "my.toml")
    assert config.genesis == folder / "g.json"
    assert config.engine.text_model == folder / "m"


def test_a_relative_flag_starts_at_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(tmp_path / "peer", overrides={"genesis": Path("g.json")}).genesis == tmp_path / "g.json"


def test_models_live_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSLLM_HOME", str(tmp_path / "models"))
    assert load_config(tmp_path).home == tmp_path / "models"


text = st.text(
    st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]), min_size=1, max_size=40
)


@given(name=text, key=text, port=st.integers(0, 65535), listen=st.lists(text, max_size=3), threads=st.integers(1, 64))
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, name: str, key: str, port: int, listen: list[str], threads: int
) -> None:
    folder = tmp_path_factory.mktemp("peer")
    config = PeerConfig(
        data_dir=folder,
        name=name,
        visibility="group",
        roles=("data",),
        genesis=folder / "g.json",
        api=ApiConfig(port=port, key=key),
        p2p=P2pConfig(listen=tuple(listen)),
        engine=EngineConfig(threads=threads),
    )
    save_config(config)
    assert load_config(folder) == config
    assert (folder / "config.toml").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("host", "answer"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.2", False), ("example.org", False)],
)  # fmt: skip
def test_loopback(host: str, answer: bool) -> None:
    assert is_loopback(host) is answer


def test_every_setting_is_documented() -> None:
    rows = settings_rows()
    assert {"name", "visibility", "api.port", "p2p.bootstrap", "engine.max_active", "plugins.enabled"} <= {
        row.name for row in rows
    }
    assert all(row.doc.endswith(".") for row in rows)
    assert settings_table().count("\n") == len(rows) + 2


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://vllm:8000", "http://vllm:8000/v1"),
        ("http://vllm:8000/v1/", "http://vllm:8000/v1"),
        ("https://[::1]/serve/v1", "https://[::1]/serve/v1"),
        ("", ""),
    ],
)
def test_the_upstreams_url_may_end_in_v1_or_not(url: str, base: str) -> None:
    assert EngineConfig(upstream_url=url, upstream_model="m" if url else "").upstream_base() == base


def test_an_upstreams_secrets_are_shown_nowhere(tmp_path: Path) -> None:
    text = "[engine]\nupstream_url = 'http://a'\nupstream_model = 'm'\nupstream_key = 'hush-hush'"
    config = load_config(written(tmp_path, text))
    assert "hush" not in f"{config!r}{config.effective()}"
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text.replace("'http://a'", "'http://me:hush-hush@a/v1'")))
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('parallel = "tensor"\ndevices = ["cpu"]', "expected two or more"),
        ('parallel = "both"', "engine.parallel"),
        ('devices = ["cuda:0", "cuda:1"]', "expected at most one"),
        ('devices = ["cuda:0"]\nbackend = "fast"', "engine.backend is fast"),
    ],
)
def test_devices_that_do_not_belong_together_are_refused(tmp_path: Path, lines: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(written(tmp_path, f"[engine]\n{lines}"))


def test_a_spread_model_runs_on_the_general_path(tmp_path: Path) -> None:
    text = '[engine]\nparallel = "tensor"\ndevices = ["cuda:0", "cuda:1"]'
    engine = load_config(written(tmp_path, text)).engine
    assert (engine.spread().ranks, engine.backend) == (2, "auto")
