"""What `deploy/` says parses and fits together: commands, settings, ports, names. None of it is run here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
import yaml

from nsllm.cli.root import root
from nsllm.node.settings import load_config

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def manifests() -> dict[tuple[str, str], dict]:
    """(kind, name) to manifest, of everything that the kustomization names."""
    (kustomization,) = documents("kubernetes/kustomization.yaml")
    found = {}
    for name in kustomization["resources"]:
        for manifest in documents(f"kubernetes/{name}"):
            assert manifest["apiVersion"]
            found[manifest["kind"], manifest["metadata"]["name"]] = manifest
    there = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == there
    return found


def config_of(text: str, folder: Path):
    (folder / "config.toml").write_text(text)
    return load_config(folder / "peer", file=folder / "config.toml")


def kubernetes_config(folder: Path):
    return config_of(manifests()["Secret", "peer-config"]["stringData"]["config.toml"], folder)


def check_arguments(arguments: list[str]) -> None:
    """The words after `nsllm` are a command with its options."""
    command: click.Command = root
    context = click.Context(root, info_name="nsllm")
    rest = list(arguments)
    while isinstance(command, click.Group):
        found = command.get_command(context, rest[0])
        assert found is not None, f"there is no command {rest[0]!r}"
        command, context = found, click.Context(found, parent=context, info_name=rest.pop(0))
    command.make_context("nsllm", rest)


def dockerfile() -> dict[str, list[str]]:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word.isupper():
            found.setdefault(word, []).append(rest.strip())
    return found


def test_the_images_command_is_one_of_ours():
    steps = dockerfile()
    assert json.loads(steps["ENTRYPOINT"][-1])[-1] == "nsllm"
    arguments = json.loads(steps["CMD"][-1])
    check_arguments(arguments)
    assert arguments[arguments.index("--data-dir") + 1].startswith(json.loads(steps["VOLUME"][0])[0])
    with pytest.raises((AssertionError, click.UsageError)):
        check_arguments(["up", "--data-directory", "x"])


def test_the_image_is_built_from_what_is_there(repository):
    steps = dockerfile()
    assert re.fullmatch(r"python:3\.1[1-3]-slim-\w+", steps["FROM"][0])
    assert steps["USER"] == ["nsllm"]
    pip = next(step for step in steps["RUN"] if step.startswith("pip install"))
    (constraints,) = re.findall(r"-c /usr/src/nsllm/(\S+)", pip)
    assert (repository / constraints).is_file()
    assert ".*" in (repository / ".dockerignore").read_text()  # no keys, no virtual environment


def test_the_health_check_is_a_program_that_compiles():
    (line,) = dockerfile()["HEALTHCHECK"]
    program = json.loads(line.partition("CMD ")[2])
    assert program[:2] == ["python", "-c"]
    compile(program[2], "healthcheck", "exec")
    assert "/healthz" in program[2]


def test_compose_puts_the_peer_in_front_of_its_vllm(tmp_path):
    (compose,) = documents("compose.yaml")
    vllm, peer = compose["services"]["vllm"], compose["services"]["peer"]
    config = config_of((DEPLOY / "config.toml").read_text(), tmp_path)
    flags = dict(item.removeprefix("--").split("=", 1) for item in vllm["command"])
    assert config.engine.upstream_base() == f"http://{flags['host']}:{flags['port']}/v1"
    assert config.engine.upstream_model == flags["model"]
    assert peer["network_mode"] == vllm["network_mode"] == "host"
    context = (DEPLOY / peer["build"]["context"]).resolve()
    assert (context / peer["build"]["dockerfile"]).is_file()
    mounted = {item.split(":")[0] for item in (*peer["volumes"], *vllm["volumes"])}
    assert {name for name in mounted if not name.startswith(".")} == set(compose["volumes"])
    assert all((DEPLOY / name).is_file() for name in mounted if name.startswith("."))


def test_the_manifests_fit_together(tmp_path):
    found = manifests()
    config = kubernetes_config(tmp_path)
    vllm = found["Deployment", "vllm"]["spec"]["template"]["spec"]["containers"][0]
    service = found["Service", "vllm"]["spec"]
    assert config.engine.upstream_base() == f"http://vllm:{service['ports'][0]['port']}/v1"
    assert f"--model={config.engine.upstream_model}" in vllm["args"]
    assert f"--port={vllm['ports'][0]['containerPort']}" in vllm["args"]
    assert found["Secret", "vllm-key"]["stringData"]["key"] == config.engine.upstream_key
    assert vllm["env"][1]["valueFrom"]["secretKeyRef"] == {"name": "vllm-key", "key": "key"}
    assert len(config.api.key) >= 16
    for kind, name in (("Deployment", "vllm"), ("StatefulSet", "peer")):
        spec = found[kind, name]["spec"]
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"] == labels == found["Service", name]["spec"]["selector"]


def test_the_peer_of_the_cluster_runs_as_the_image_does(tmp_path):
    found = manifests()
    config = kubernetes_config(tmp_path)
    spec = found["StatefulSet", "peer"]["spec"]
    pod = spec["template"]["spec"]
    (peer,) = pod["containers"]
    assert spec["replicas"] == 1
    check_arguments(peer["args"])
    assert peer["args"] == json.loads(dockerfile()["CMD"][-1])
    ports = {port["name"]: port["containerPort"] for port in peer["ports"]}
    assert ports["api"] == config.api.port
    assert config.p2p.listen == (f"/ip4/0.0.0.0/tcp/{ports['p2p']}",)
    assert sorted(map(str, ports.values())) == sorted(dockerfile()["EXPOSE"][0].split())
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert peer[probe]["httpGet"]["path"] in {"/healthz", "/readyz"}
        assert peer[probe]["httpGet"]["httpHeaders"] == [{"name": "Host", "value": "localhost"}]
    known = {volume["name"] for volume in pod["volumes"]}
    known |= {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in peer["volumeMounts"]}
    assert set(mounts.values()) == known
    assert {*json.loads(dockerfile()["VOLUME"][0]), "/etc/nsllm", "/tmp"} == set(mounts)
    assert f"--uid {pod['securityContext']['runAsUser']}" in " ".join(dockerfile()["RUN"])


def test_images_are_pinned():
    (compose,) = documents("compose.yaml")
    named = [service["image"] for service in compose["services"].values() if "image" in service]
    for (kind, _), manifest in manifests().items():
        if kind in {"Deployment", "StatefulSet"}:
            named += [item["image"] for item in manifest["spec"]["template"]["spec"]["containers"]]
    assert len(named) == 3
    assert [image for image in named if not re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", image)] == []


def test_the_guide_says_that_none_of_it_was_run(repository):
    text = (repository / "docs" / "deployment.md").read_text()
    assert "never built" in text
    assert "never started" in text
    assert "never applied" in text
