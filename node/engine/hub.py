"""The Hugging Face hub, for `nsllm model add`: what a repository holds, and its files, resumed where they stopped.

The work is done in a process of its own (`python -m nsllm.node.engine.hub`), so that an interrupt ends it at once and
huggingface_hub does not stay with the caller. Mirrors and tokens are that library's affair: `HF_ENDPOINT`, `HF_TOKEN`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nsllm.node.engine.fetch import POLL_S, Progress, Report, ended, file_sha256, folder_bytes
from nsllm.node.errors import ModelMissingError

if TYPE_CHECKING:
    import httpx

MAX_JSON_BYTES: Final = 1 << 20
PARTIAL: Final = ".partial"
COMMIT_FILE: Final = ".commit"
RETRY_PAUSES_S: Final = (0.5, 2.0, 5.0)
PARTIAL_CONTENT: Final = 206
RANGE_NOT_SATISFIABLE: Final = 416
QUIET: Final = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONWARNINGS": "ignore"}


@dataclass(frozen=True, slots=True)
class Plan:
    """One commit of a repository."""

    repository: str
    commit: str
    sizes: dict[str, int]
    """Path in the repository to bytes."""
    sha256: dict[str, str]
    """Of the large files, as the hub states it."""


def plan(repository: str, revision: str) -> Plan:
    """What `repository` holds at `revision` (a branch, tag or commit).

    Raises:
        ModelMissingError: no network, or no such repository or revision.
    """
    found = json.loads(_run(["plan", repository, revision], None))
    files = found["files"]
    digests = {path: sha256 for path, (_, sha256) in files.items() if sha256}
    return Plan(repository, found["commit"], {path: size for path, (size, _) in files.items()}, digests)


def get(plan: Plan, files: Sequence[str], folder: Path, report: Report) -> None:
    """Download these files into `folder`; those that are there already, or in part, are not begun again.

    Raises:
        ModelMissingError: no network, or a file that is not what the hub states.
    """
    _same_commit(folder, plan.commit)
    step = f"download {plan.repository}, {len(files)} files"
    total = sum(plan.sizes[file] for file in files)
    before = sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and path.name not in files)

    def poll() -> None:
        report(Progress(step, max(0, min(folder_bytes(folder) - before, total - 1)), total, "bytes"))

    _run(["get", plan.repository, plan.commit, str(folder), *files], poll)
    for file in files:
        path = folder / file
        if path.stat().st_size != plan.sizes[file] or plan.sha256.get(file) not in {None, file_sha256(path)}:
            path.unlink()
            raise ModelMissingError(f"{file} is not what the hub states", hint="it was removed: try again")
    report(Progress(step, total, total, "bytes"))


def _same_commit(folder: Path, commit: str) -> None:
    """What an earlier attempt left of another commit goes."""
    known = folder / COMMIT_FILE
    if known.exists() and known.read_text(encoding="utf-8") != commit:
        for path in sorted(folder.iterdir()):
            path.unlink()
    known.write_text(commit, encoding="utf-8")


def _run(arguments: Sequence[str], poll: Callable[[], None] | None) -> str:
    """Run this module as a process; its standard output."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "nsllm.node.engine.hub", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env={**os.environ, **QUIET},
        )
        with ended(process):
            while process.poll() is None:
                time.sleep(POLL_S)
                if poll is not None:
                    poll()
        output.seek(0)
        errors.seek(0)
        said = [line.strip() for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
        if process.returncode != 0:
            raise ModelMissingError(
                f"cannot get {arguments[1]} from the hub: {(said or ['it said nothing'])[-1][:300]}",
                hint="check name and network; what was downloaded is kept, and `nsllm model add DIR` needs none",
            )
        return output.read().decode()


def main(arguments: Sequence[str]) -> int:
    """`plan REPOSITORY REVISION` or `get REPOSITORY COMMIT FOLDER FILE…`; exit 1 with one line if it cannot be."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    command, repository, revision, *rest = arguments
    try:
        if command == "plan":
            _write_plan(repository, revision)
        else:
            _download(repository, revision, Path(rest[0]), rest[1:])
    except GatedRepoError:
        reason = "its authors give access on request: ask at the hub, then set HF_TOKEN"
    except RepositoryNotFoundError:
        reason = "there is no such model at the hub, or it is private"
    except RevisionNotFoundError:
        reason = f"it has no revision {revision!r}"
    except HFValidationError:
        reason = "that is neither a folder here nor a name at the hub"
    except Exception as error:  # noqa: BLE001 - the library's clients change: whatever it is becomes one line
        name = type(error).__name__
        away = any(word in name for word in ("Connect", "Timeout", "Protocol", "Read"))
        reason = f"the hub is not reached ({name})" if away else f"{name}: {' '.join(str(error).split())[:200]}"
    else:
        return 0
    sys.stderr.write(reason + "\n")
    return 1


def _write_plan(repository: str, revision: str) -> None:
    from huggingface_hub import HfApi

    info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=30)
    files = {row.rfilename: [row.size or 0, row.lfs.sha256 if row.lfs else ""] for row in info.siblings or ()}
    sys.stdout.write(json.dumps({"commit": info.sha or revision, "files": files}))


def _download(repository: str, commit: str, folder: Path, files: Sequence[str]) -> None:
    """Each file by ranges into `FILE.partial`, which takes its name once it is whole.

    Done here and not by `hf_hub_download`, which begins a file again when the process before it was ended.
    """
    import httpx
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not listed in __all__

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    # Files are redirected to a storage host; httpx leaves the token behind when the host changes.
    with httpx.Client(headers=headers, follow_redirects=True, timeout=httpx.Timeout(30)) as client:
        for file in files:
            part = folder / f"{file}{PARTIAL}"
            for pause_s in (*RETRY_PAUSES_S, None):
                try:
                    if not (folder / file).exists():
                        _append(client, hf_hub_url(repository, file, revision=commit), part)
                    break
                except httpx.TransportError:
                    if pause_s is None:
                        raise
                    time.sleep(pause_s)
            if part.exists():
                part.rename(folder / file)


def _append(client: httpx.Client, url: str, part: Path) -> None:
    """The rest of a file, from where `part` ends."""
    have_bytes = part.stat().st_size if part.exists() else 0
    asks = {"Range": f"bytes={have_bytes}-"} if have_bytes else {}
    with client.stream("GET", url, headers=asks) as response:
        if response.status_code == RANGE_NOT_SATISFIABLE:  # it ends there: all of it was here already
            return
        response.raise_for_status()
        goes_on = response.status_code == PARTIAL_CONTENT and response.headers.get("content-range", "").startswith(
            f"bytes {have_bytes}-"
        )
        with part.open("ab" if goes_on else "wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk)
                file.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
