"""Packed weights on disk: made once, mapped by every worker of the machine, never used unless they are whole.

The file holds what `load_weights` makes in memory, tensor beside tensor, so that a worker's start neither reads nor
quantizes the model, and workers of several peers share one copy of the pages. Its name covers the model and whatever
decides the layout; anything else than the file that was written (cut short, a bit that fell over) is made anew.

Layout: `MAGIC`, SHA-256 of everything after it, length of the header (8 bytes, little endian), the header (JSON), then
the tensors, each at a multiple of 64 bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import torch

from nsllm.files import locked
from nsllm.node.engine.fast import weights as packing
from nsllm.node.engine.fast.memory import LINE_BYTES, reserve
from nsllm.node.engine.fast.weights import LlamaWeights

log = logging.getLogger(__name__)

MAGIC: Final = b"nsllm weights 1\n"
PREFIX_BYTES: Final = len(MAGIC) + 32 + 8
LOCK: Final = ".lock"
LOCK_LIMIT_S: Final = 60.0
TEMPORARY: Final = ".tmp-"
LAYOUTS_KEPT: Final = 2
"""Of one model: two installations that share a home do not undo each other's work."""
UNUSED_S: Final = 90 * 24 * 3600
"""Files that nobody has mapped for so long go when another one is made."""
SOURCES: Final = ("packed.py", "shape.py", "weights.py")
"""What decides the layout, beside the compiled kernels."""
SYSTEM_HUGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@dataclass(frozen=True, slots=True)
class Place:
    """Where packed weights of one model stand."""

    folder: Path
    model: str
    """What names the model and its numbers; hexadecimal."""

    def file(self, library: Path) -> Path:
        """The file for these kernels and this code."""
        sources = [resources.files(__package__).joinpath(name).read_bytes() for name in SOURCES]
        key = hashlib.sha256(b"\0".join([library.name.encode(), *sources])).hexdigest()
        return self.folder / f"{self.model[:32]}-{key[:16]}.packed"


def keep_packed(
    make: Callable[[], LlamaWeights], place: Place, library: Path, *, limit_s: float = LOCK_LIMIT_S
) -> LlamaWeights:
    """The weights of `place`, mapped; made by `make` and written if they are not there. Blocks.

    Where the file cannot be written, or somebody else has been making it for `limit_s`, what `make` gives is used.
    """
    path = place.file(library)
    found = open_packed(path)
    if found is not None:
        return found
    made: LlamaWeights | None = None
    try:
        place.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(place.folder / LOCK, _patience(limit_s)):
            found = open_packed(path)  # by whom we waited for
            if found is not None:
                return found
            for stale in place.folder.glob(f"{TEMPORARY}*"):  # of a worker that was killed
                stale.unlink(missing_ok=True)
            made = make()
            write_packed(path, made)
            _prune(path, place.model[:32])
            return open_packed(path) or made
    except (OSError, TimeoutError) as error:
        log.warning("packed_weights_not_kept file=%s error=%s", path, error)
        return made or make()


def write_packed(path: Path, weights: LlamaWeights) -> None:
    """Write the weights to `path`: there whole, or not at all.

    Raises:
        OSError: as the file system says.
    """
    tensors: list[torch.Tensor] = []
    spec = _spec(weights, tensors)
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.numel() * tensor.element_size() // LINE_BYTES) * LINE_BYTES
    rows = [
        [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), start]
        for tensor, start in zip(tensors, starts, strict=True)
    ]
    head = json.dumps({"weights": spec, "tensors": rows, "size_bytes": end}, separators=(",", ":")).encode()
    head += b" " * (-(PREFIX_BYTES + len(head)) % LINE_BYTES)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY)
    try:
        with os.fdopen(handle, "wb") as file:
            digest = hashlib.sha256()
            file.write(MAGIC + bytes(digest.digest_size))
            for chunk in (len(head).to_bytes(8, "little"), head, *_padded(tensors)):
                digest.update(chunk)
                file.write(chunk)
            file.seek(len(MAGIC))
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):  # what comes back by reading are the largest pages that there can be
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def open_packed(path: Path) -> LlamaWeights | None:
    """Map the weights in `path`; None if there is no such file, or it is not as it was written (then it goes).

    Reads the file through (0.1 s for 200 MB): a wrong weight would make wrong scores under the right name.
    """
    try:
        memory = _mapped(path)
    except (OSError, ValueError):  # ValueError: empty
        return None
    length = int.from_bytes(bytes(memory[len(MAGIC) + 32 : PREFIX_BYTES].tolist()), "little")
    whole = bytes(memory[: len(MAGIC)].tolist()) == MAGIC and _digest(memory) == bytes(
        memory[len(MAGIC) : len(MAGIC) + 32].tolist()
    )
    if not whole:
        log.warning("packed_weights_damaged file=%s", path)
        path.unlink(missing_ok=True)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    memory = _quick(memory)
    head = json.loads(bytes(memory[PREFIX_BYTES : PREFIX_BYTES + length].numpy()))
    data = memory[PREFIX_BYTES + length :]
    tensors = [
        data[start : start + torch.Size(shape).numel() * getattr(torch, dtype).itemsize]
        .view(getattr(torch, dtype))
        .view(shape)
        for dtype, shape, start in head["tensors"]
    ]
    weights = _value(head["weights"], tensors)
    assert isinstance(weights, LlamaWeights)
    return weights


def _spec(value: Any, tensors: list[torch.Tensor]) -> Any:
    """`value` as JSON; its tensors are appended to `tensors` and named by their number."""
    match value:
        case torch.Tensor():
            tensors.append(value)
            return {"tensor": len(tensors) - 1}
        case tuple() | list():
            return [_spec(item, tensors) for item in value]
        case None | int() | float() | str():
            return value
        case _ if is_dataclass(value):
            parts = {field.name: _spec(getattr(value, field.name), tensors) for field in fields(value)}
            return {"kind": type(value).__name__, "parts": parts}
        case _:
            raise TypeError(f"packed weights hold a {type(value).__name__}")


def _value(spec: Any, tensors: list[torch.Tensor]) -> Any:
    """What `_spec` described."""
    if isinstance(spec, list):
        return tuple(_value(item, tensors) for item in spec)
    if not isinstance(spec, dict):
        return spec
    if "tensor" in spec:
        return tensors[spec["tensor"]]
    kind = getattr(packing, spec["kind"])
    return kind(**{name: _value(part, tensors) for name, part in spec["parts"].items()})


def _padded(tensors: list[torch.Tensor]) -> Iterator[Any]:
    for tensor in tensors:
        if tensor.numel():
            yield tensor.contiguous().flatten().view(torch.uint8).numpy().data
        yield bytes(-(tensor.numel() * tensor.element_size()) % LINE_BYTES)


def _mapped(path: Path) -> torch.Tensor:
    """The file's bytes, shared with whoever else maps it; uint8, must not be written.

    Raises:
        OSError, ValueError: no such file, or an empty one.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes < PREFIX_BYTES:
            raise ValueError(f"{path} has {size_bytes} bytes")
        pages = mmap.mmap(file.fileno(), size_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have memory that it may write
        return torch.frombuffer(pages, dtype=torch.uint8)


def _digest(memory: torch.Tensor) -> bytes:
    return hashlib.sha256(memory[len(MAGIC) + 32 :].numpy().data).digest()


def _quick(memory: torch.Tensor) -> torch.Tensor:
    """`memory`, or a copy of our own where sharing would cost speed.

    A step reads all weights: on small pages it took 40 % longer (7.5 against 5.4 ms a token, measured). Linux 6.18 maps
    files of ext4 in huge pages, older ones do not.
    """
    if _huge_bytes(memory.data_ptr()) >= len(memory) // 2 or not _system_has_huge_pages():
        return memory
    copy = reserve(len(memory))
    copy.copy_(memory)
    log.info("packed_weights_copied size_mb=%d", len(memory) >> 20)
    return copy


def _huge_bytes(address: int) -> int:
    """Bytes in huge pages of the mapping that begins at `address`; 0 where the system does not say."""
    inside = False
    try:
        with Path("/proc/self/smaps").open(encoding="ascii", errors="replace") as rows:
            for row in rows:
                name, _, rest = row.partition(" ")
                if "-" in name:
                    inside = int(name.partition("-")[0], 16) == address
                elif inside and name == "FilePmdMapped:":
                    return int(rest.split()[0]) << 10
    except (OSError, ValueError):
        pass
    return 0


def _system_has_huge_pages() -> bool:
    """Whether memory of our own can be in huge pages."""
    try:
        return "[never]" not in SYSTEM_HUGE_PAGES.read_text(encoding="ascii")
    except OSError:
        return False


def _patience(limit_s: float) -> Callable[[], None]:
    """Raises `TimeoutError` once called later than `limit_s` from now."""
    ends = time.monotonic() + limit_s

    def check() -> None:
        if time.monotonic() >= ends:
            raise TimeoutError(f"another process packs weights for more than {limit_s:.0f} s")

    return check


def _prune(newest: Path, model: str) -> None:
    """Remove other layouts of the model but one, and what nobody uses."""
    now_s = newest.stat().st_mtime
    files = sorted(newest.parent.glob("*.packed"), key=lambda path: -path.stat().st_mtime)
    same = [path for path in files if path.name.startswith(f"{model}-")]
    unused = [path for path in files if now_s - path.stat().st_mtime > UNUSED_S]
    for path in [*same[LAYOUTS_KEPT:], *unused]:
        if path != newest:
            path.unlink(missing_ok=True)
