"""The doctor's checks: each looks at one thing and says what it found and what to do. Blocking."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import os
import platform
import shutil
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final, Literal

import httpx
import psutil

from nsllm.errors import NsllmError
from nsllm.node.attachments.pins import ALL, HINT, PinError, missing, pinned
from nsllm.node.config import CONFIG_FILE
from nsllm.node.data_folder import P2P_PORT_FILE
from nsllm.node.engine.models import ENCODER_FOLDER, NEED_BYTES, TEXT_FOLDER, model_digest
from nsllm.node.identity import KEYS_FOLDER, LOCK_FILE
from nsllm.node.settings import load_config
from nsllm.p2p.tcp_port import is_free

State = Literal["ok", "warn", "fail"]

PEER_BYTES: Final = 900 << 20
"""Resident memory of one peer with its engine worker, rounded up: the weights alone are 269 MB."""
DISK_BYTES: Final = 200 << 20
"""What a peer's store, log and chain need to start with."""
SKEW_FAIL_S: Final = 10.0
SKEW_WARN_S: Final = 1.5
"""The HTTP Date header, which skew is read from, has whole seconds."""
CLOCK_PROBE_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    state: State
    found: str
    hint: str = ""


def run_checks(*, data_dir: Path, home: Path, base_port: int, peers: int, api: str) -> tuple[Check, ...]:
    """All checks, in the order of the road: building, running, one peer's folder."""
    checks: tuple[Callable[[], Check], ...] = (
        check_python,
        check_headers,
        check_torch,
        lambda: check_memory(peers),
        lambda: check_disk("models", home, NEED_BYTES if not (home / "models" / TEXT_FOLDER).exists() else 0),
        lambda: check_disk("data", data_dir, DISK_BYTES * peers),
        lambda: check_models(home),
        check_pictures,
        lambda: check_ports(base_port, peers, api),
        check_clock,
        lambda: check_skew(api),
        lambda: check_folder(data_dir),
    )
    return tuple(check() for check in checks)


def check_python() -> Check:
    """The interpreter's version."""
    version = platform.python_version()
    if sys.version_info < (3, 11):  # noqa: UP036 - the doctor may be asked by a forced installation
        return Check("python", "fail", version, "install Python 3.11 or newer")
    return Check("python", "ok", f"{version} at {sys.executable}")


def check_headers() -> Check:
    """What building fastecdsa (a part of libp2p that comes as source) needs; only a warning once it is installed."""
    missing = []
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        missing.append("a C compiler")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        missing.append("Python.h")
    if not _has_gmp():
        missing.append("gmp.h")
    if not missing:
        return Check("headers", "ok", "C compiler, Python.h, gmp.h")
    found = f"missing: {', '.join(missing)}"
    try:
        importlib.metadata.version("fastecdsa")
    except importlib.metadata.PackageNotFoundError:
        return Check("headers", "fail", found, "apt-get install gcc python3-dev libgmp-dev")
    return Check("headers", "ok", f"{found}; not needed, everything is built already")


def _has_gmp() -> bool:
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        return ctypes.util.find_library("gmp") is not None
    probe = subprocess.run(
        [compiler, "-E", "-x", "c", "-"], input=b"#include <gmp.h>\n", capture_output=True, check=False, timeout=20
    )
    return probe.returncode == 0


def check_torch() -> Check:
    """Whether torch imports, in a process of its own: a broken build may crash the importer."""
    program = "import torch; print(torch.__version__, torch.cuda.is_available())"
    try:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    except subprocess.TimeoutExpired:
        return Check("torch", "fail", "importing takes more than two minutes", "is the disk very slow?")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        return Check(
            "torch", "fail", last[:200], "install it anew: pip install $TORCH_PIP_ARGS -c constraints.txt torch"
        )
    version, _, cuda = done.stdout.strip().partition(" ")
    return Check("torch", "ok", f"{version}, {'CUDA' if cuda == 'True' else 'CPU only'}")


def check_memory(peers: int) -> Check:
    """Whether that many peers fit into the memory that is available."""
    free = psutil.virtual_memory().available
    need = PEER_BYTES * peers
    found = f"{free >> 20} MB available, {peers} peers take about {need >> 20} MB"
    if free < PEER_BYTES:
        return Check("memory", "fail", found, "close other programs; one peer does not fit")
    if free < need:
        return Check("memory", "warn", found, f"use --peers {free // PEER_BYTES}, or close other programs")
    return Check("memory", "ok", found)


def check_disk(what: str, folder: Path, need_bytes: int) -> Check:
    """Free space where `folder` is or will be, and whether we may write there."""
    place = folder
    while not place.exists():
        place = place.parent
    name = f"disk {what}"
    if not os.access(place, os.W_OK | os.X_OK):
        return Check(name, "fail", f"{place} cannot be written", f"choose another folder, or: chown $USER {place}")
    free = shutil.disk_usage(place).free
    found = f"{free >> 20} MB free in {folder}"
    if free < need_bytes:
        return Check(
            name, "fail", f"{found}, {need_bytes >> 20} MB needed", "free some space, or choose another folder"
        )
    return Check(name, "ok", found)


def check_models(home: Path) -> Check:
    """The default models and their digests; what is missing is fetched at the first start."""
    digests, missing = [], []
    for name in (TEXT_FOLDER, ENCODER_FOLDER):
        folder = home / "models" / name
        if not folder.is_dir():
            missing.append(name)
            continue
        try:
            digests.append(f"{name} {model_digest(folder).hex()[:16]}")
        except NsllmError as error:
            return Check("models", "fail", error.message, f"remove {folder}; nsllm model fetch")
    if missing:
        return Check("models", "warn", f"not there yet: {', '.join(missing)}", "nsllm model fetch")
    return Check("models", "ok", ", ".join(digests))


def check_pictures() -> Check:
    """What reading pictures takes: the extra's packages, and the very models."""
    lacking = missing()
    if lacking:
        return Check("pictures", "warn", f"not read: {', '.join(lacking)} not installed", HINT)
    try:
        for pin in ALL:
            pinned(pin)
    except PinError as error:
        return Check("pictures", "fail", str(error), HINT)
    return Check("pictures", "ok", "OCR and labels are there, as pinned")


def check_ports(base_port: int, peers: int, api: str) -> Check:
    """Whether the API ports are free; a peer of ours that runs there is no fault."""
    busy = [port for port in range(base_port, base_port + peers) if not is_free("127.0.0.1", port)]
    span = f"{base_port} to {base_port + peers - 1}"
    if not busy:
        return Check("ports", "ok", f"{span} are free")
    found = f"in use: {', '.join(map(str, busy))}"
    if _date_of(api) is not None and any(api.rstrip("/").endswith(f":{port}") for port in busy):
        return Check("ports", "ok", f"{found}; a peer answers at {api}")
    return Check("ports", "warn", found, "stop what runs there, or use --base-port or --port")


def check_clock() -> Check:
    """Whether the wall clock runs as fast as the monotonic one, and stands in a plausible year."""
    wall, mono = time.time(), time.monotonic()
    time.sleep(CLOCK_PROBE_S)
    drift_s = abs((time.time() - wall) - (time.monotonic() - mono))
    built = Path(__file__).stat().st_mtime
    if wall < built - 86400:
        when = time.strftime("%Y-%m-%d", time.gmtime(wall))
        return Check("clock", "fail", f"it says {when}, before this program was installed", "set the clock; run NTP")
    if drift_s > CLOCK_PROBE_S / 4:
        return Check(
            "clock", "warn", f"wall clock jumps: {drift_s:.3f} s within {CLOCK_PROBE_S} s", "run NTP with slewing"
        )
    return Check("clock", "ok", f"steady, {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}")


def check_skew(api: str) -> Check:
    """The wall clock against a running peer's."""
    theirs = _date_of(api)
    if theirs is None:
        return Check("skew", "ok", f"no peer answers at {api}, nothing to compare with")
    skew_s = time.time() - theirs
    found = f"{skew_s:+.0f} s against {api}"
    if abs(skew_s) > SKEW_FAIL_S:
        return Check("skew", "fail", found, "set the clock; validators refuse headers from another time")
    return Check("skew", "warn" if abs(skew_s) > SKEW_WARN_S else "ok", found, "run NTP")


def _date_of(api: str) -> float | None:
    try:
        response = httpx.get(f"{api.rstrip('/')}/healthz", timeout=2, trust_env=False)
        return parsedate_to_datetime(response.headers["date"]).timestamp()
    except (httpx.HTTPError, httpx.InvalidURL, KeyError, ValueError):
        return None


def check_folder(data_dir: Path) -> Check:
    """Modes and settings of one peer's folder."""
    if not data_dir.exists():
        return Check("data folder", "ok", f"{data_dir} is not there yet; `nsllm up` makes it")
    if not data_dir.is_dir():
        return Check("data folder", "fail", f"{data_dir} is not a folder", "choose another --data-dir")
    open_to_others = [str(path) for path in _private_paths(data_dir) if stat.S_IMODE(path.stat().st_mode) & 0o077]
    if open_to_others:
        return Check("data folder", "warn", f"others may use {', '.join(open_to_others)}", f"chmod -R go= {data_dir}")
    try:
        load_config(data_dir)
    except NsllmError as error:
        return Check("data folder", "fail", error.message, error.hint)
    return Check("data folder", "ok", str(data_dir))


def _private_paths(data_dir: Path) -> Iterator[Path]:
    names = (".", KEYS_FOLDER, CONFIG_FILE, LOCK_FILE, P2P_PORT_FILE)
    yield from (data_dir / name for name in names if (data_dir / name).exists())
    if (data_dir / KEYS_FOLDER).is_dir():
        yield from sorted((data_dir / KEYS_FOLDER).iterdir())
