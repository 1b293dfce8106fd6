"""Lives of a script, one after another: each dies by SIGKILL at a named moment, the last one comes to its end.

    lives.py SCRIPT FOLDER MOMENT COUNT

Each life is a process of its own, forked from this one, and calls `life(FOLDER, MOMENT, number)` of SCRIPT; numbers
begin at 1, and the last life has no moment (""). Prints how many died. Exit status 0 if the last came to its end.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path


def function_of(script: Path) -> Callable[[Path, str, int], None]:
    """What a life does; imports the script."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module
    spec.loader.exec_module(module)
    life: Callable[[Path, str, int], None] = module.life
    return life


def main(script: Path, folder: Path, moment: str, count: int) -> int:
    """Live and die; ends early, with status 1, if a life fails in another way."""
    life = function_of(script)
    deaths = 0
    for number in range(1, count + 1):
        child = os.fork()
        if child == 0:
            life(folder, moment if number < count else "", number)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status not in {0, -signal.SIGKILL}:
            return 1
        deaths += status != 0
    print(deaths)
    return 0 if status == 0 else 1


if __name__ == "__main__":
    name, place, when, lives = sys.argv[1:]
    sys.exit(main(Path(name), Path(place), when, int(lives)))
