"""A network of four peers on a virtual clock, twice from one seed and once from another.

    python examples/simulate.py

CI runs this.
"""

from __future__ import annotations

from nsllm.simulations.scenarios import run

first = run("steady", peers=4, seed=1)
again = run("steady", peers=4, seed=1)
other = run("steady", peers=4, seed=2)

print(f"{first['questions']} questions, {first['messages']} messages in {first['virtual_s']} virtual seconds")
print(first["digest"] == again["digest"], first["digest"] == other["digest"])  # True False
