"""Scenario `colluding-scorers`: f validators score falsely, the same way; agreed scores stay with the honest ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, Literal

import trio

from nsllm.governance.errors import AbstainError
from nsllm.governance.ports import JUDGED_TOKENS, Likelihood
from nsllm.record import Message, SignedRecord
from nsllm.simulations.errors import InvariantError, ScenarioError
from nsllm.simulations.network import SimulatedNetwork
from nsllm.simulations.questions import TOPICS, Given, all_anchored, ask, outcome, start_all, until
from nsllm.simulations.standin import StandInEngine
from nsllm.simulations.virtual import seeded

QUESTIONS: Final = 6
SPREAD: Final = 0.2
"""Honest validators' log-probabilities differ by up to this much: other hardware, other rounding."""
FALSE: Final = {"praise": 0.0, "damn": -9.0}
"""Log-probability that a colluder claims of every answer."""

Collusion = Literal["praise", "damn"]


class Scorer(StandInEngine):
    """A stand-in whose likelihoods are a little its own, or a lie."""

    def __init__(self, number: int, lie: Collusion | None) -> None:
        super().__init__()
        self._number = number
        self._lie = lie

    async def likelihoods(
        self, items: Sequence[tuple[tuple[Message, ...], str]], *, most_tokens: int = JUDGED_TOKENS
    ) -> list[Likelihood]:
        """See `StandInEngine.likelihoods`."""
        told = await super().likelihoods(items, most_tokens=most_tokens)
        return [self._told(likelihood, text) for likelihood, (_, text) in zip(told, items, strict=True)]

    def _told(self, likelihood: Likelihood, text: str) -> Likelihood:
        if self._lie is not None:
            return Likelihood(FALSE[self._lie], likelihood.tokens, FALSE[self._lie])
        digest = hashlib.sha256(f"{self._number}/{text}".encode()).digest()
        offset = SPREAD * (int.from_bytes(digest[:4], "big") / 2**31 - 1)
        return Likelihood(likelihood.mean_logprob + offset, likelihood.tokens, likelihood.head_logprob + offset)


async def colluding_scorers(network: SimulatedNetwork, nursery: trio.Nursery) -> dict[str, str | int | float]:
    """A third of the validators, f, praises or damns every answer: agreed scores stay within what the others found.

    Raises:
        ScenarioError: what must hold did not.
    """
    rng = seeded(network.seed, "colluding")
    faults = (network.validators - 1) // 3
    colluders = rng.sample(range(network.validators), faults)
    lie: Collusion = rng.choice(("praise", "damn"))
    for number in range(network.validators):
        network.engines[number] = Scorer(number, lie if number in colluders else None)
    await start_all(network, nursery)
    peers = network.running()
    honest = [number for number in range(network.validators) if number not in colluders]
    given: list[Given] = []
    for count in range(QUESTIONS):
        await trio.sleep(rng.uniform(0.2, 3.0))
        number = rng.choice([number for number in range(len(peers)) if number not in colluders])
        given.append(await ask(number, peers[number], f"What should I know about {rng.choice(TOPICS)} {count}?"))
    await all_anchored(peers, given)
    await until(lambda: len({peer.ledger.height for peer in peers}) == 1, "one height everywhere")
    moved = 0
    for answer in given:
        completion = await peers[answer.peer].stores.completions.get(answer.completion_id)
        if completion is None or completion.signed is None:
            raise ScenarioError(f"{answer.completion_id} has no record")
        moved += await _within_honest_range(network, honest, colluders, completion.signed)
    return {
        "questions": len(given),
        "colluders": len(colluders),
        "lie": lie,
        "scores_the_lie_was_outside_of": moved,
        **outcome(peers),
    }


async def _within_honest_range(
    network: SimulatedNetwork, honest: Sequence[int], colluders: Sequence[int], signed: SignedRecord
) -> int:
    """How many agreed scores of one record the lie lay outside of the honest range of; all agreed ones lie within.

    Raises:
        InvariantError: one does not.
    """
    found = [await _observed(network, number, signed) for number in honest]
    lies = [await _observed(network, number, signed) for number in colluders]
    proof = await network.running()[0].ledger.proofs.of(signed.record.digest())
    if proof is None:
        raise ScenarioError("a record that is anchored was not scored")
    outside = 0
    for score in proof.leaf.scores:
        values = [scores[score.name] for scores in found]
        low, high = min(values), max(values)
        if not low <= score.ppm <= high:
            raise InvariantError(f"{score.name} is {score.ppm} ppm, honest validators found {low} to {high}")
        outside += any(not low <= scores[score.name] <= high for scores in lies)
    return outside


async def _observed(network: SimulatedNetwork, number: int, signed: SignedRecord) -> dict[str, int]:
    """What one validator measures of a record; the same each time."""
    peer = network.peers[number].peer
    if peer is None:
        raise ScenarioError(f"peer {number} does not run")
    scorer = peer.parts.examiner._scorer  # noqa: SLF001 - it is asked once more
    rubric = peer.parts.context.policy.rubric
    [observed] = await scorer.observe([signed.record], rubric)
    if isinstance(observed, AbstainError):
        raise ScenarioError(f"validator {number} abstains: {observed.message}")
    return dict(zip(rubric.dimensions, observed.row, strict=True))
