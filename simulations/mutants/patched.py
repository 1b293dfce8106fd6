"""The whole package imported again from its own source, with one text of one module replaced.

Nothing on disk changes, and nothing that was imported before is touched: while the `with` block runs, `import nsllm`
gives modules of their own, all of which see the patch; afterwards `sys.modules` is as it was.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Final

from nsllm.simulations.errors import PatchError

PACKAGE: Final = "nsllm"


@contextmanager
def patched(module: str, old: str, new: str) -> Iterator[None]:
    """Import the package afresh with `old` in `module` replaced by `new`; equal texts give the sound package.

    Args:
        module: full name.
        old: stands there exactly once.
        new: what stands there instead.

    Raises:
        PatchError: at the module's import, if `old` does not stand there exactly once.
    """
    before = _take_out()
    finder = _Finder(module, old, new)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _take_out()
        sys.modules.update(before)


def _take_out() -> dict[str, ModuleType]:
    ours = [name for name in sys.modules if name == PACKAGE or name.startswith(PACKAGE + ".")]
    return {name: sys.modules.pop(name) for name in ours}


class _Finder(MetaPathFinder):
    """Finds the one module, and leaves all others to Python."""

    def __init__(self, module: str, old: str, new: str) -> None:
        self._module, self._old, self._new = module, old, new

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As Python does, with a loader that patches."""
        if fullname != self._module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin, self._old, self._new)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, old: str, new: str) -> None:
        super().__init__(fullname, path)
        self._old, self._new = old, new

    def get_code(self, fullname: str) -> CodeType | None:
        """Compiled from the patched text; no cached bytecode."""
        source = self.get_data(self.path).decode()
        found = source.count(self._old)
        if found != 1:
            raise PatchError(f"{self._old!r} stands {found} times in {fullname}", hint="write the mutant's text anew")
        return self.source_to_code(source.replace(self._old, self._new).encode(), self.path)
