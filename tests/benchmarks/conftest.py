"""The benchmarks stand beside the package: they are found from the repository's root, as `python -m` finds them."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
