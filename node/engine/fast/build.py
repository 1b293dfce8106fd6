"""The compiled kernels: every C file of this folder in one library, built once for this machine and kept."""

from __future__ import annotations

import hashlib
import logging
import platform
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from typing import Final

from nsllm.node.errors import EngineError

log = logging.getLogger(__name__)

COMPILERS: Final = ("cc", "gcc", "clang")
FLAGS: Final = (
    "-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC", "-pthread",
    # Not one operation may be merged or moved: results are the same bits on every machine.
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi",
)  # fmt: skip
LIMIT_S: Final = 120.0


def find_compiler() -> str | None:
    """Path of a C compiler, None if the machine has none."""
    return next((found for found in map(shutil.which, COMPILERS) if found), None)


def build(folder: Path) -> Path:
    """The shared library below `folder`, compiled if it is not there yet (about 3 s). Blocks.

    Its name covers sources, flags and processor, so a home folder that several machines share holds one for each.

    Raises:
        EngineError: no compiler, or it fails; says how.
    """
    sources = _sources()
    told = [part for name, text in sources.items() for part in (name.encode(), text)]
    key = hashlib.sha256(b"\0".join([*told, " ".join(FLAGS).encode(), _processor()])).hexdigest()[:24]
    target = folder / f"kernels-{key}.so"
    if target.is_file():
        return target
    compiler = find_compiler()
    if compiler is None:
        raise EngineError("no C compiler (cc, gcc, clang) is installed", hint="install gcc, or set engine.backend")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        for name, text in sources.items():
            (Path(work) / name).write_bytes(text)
        units = [name for name in sources if name.endswith(".c")]
        command = [compiler, *FLAGS, *units, "-o", "kernels.so", "-lm"]
        try:
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EngineError(f"{compiler} does not run: {error}", hint="set engine.backend to general") from None
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["nothing"])[0]
            raise EngineError(f"{compiler} cannot compile the fast path: {said}", hint="set engine.backend to general")
        (Path(work) / "kernels.so").replace(target)
    log.info("kernels_built compiler=%s file=%s", compiler, target)
    return target


def _sources() -> dict[str, bytes]:
    """C files and headers beside this module, by name, in order."""
    folder = resources.files(__package__)
    files = sorted((file for file in folder.iterdir() if file.name.endswith((".c", ".h"))), key=lambda file: file.name)
    return {file.name: file.read_bytes() for file in files}


def _processor() -> bytes:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return "\n".join([platform.system(), platform.machine(), platform.processor(), *told]).encode()
