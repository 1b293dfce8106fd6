"""Scenario `steady`: nothing goes wrong."""

from __future__ import annotations

import trio

from nsllm.governance.verify import verify_receipt
from nsllm.ids import hex0x
from nsllm.simulations.errors import ScenarioError
from nsllm.simulations.network import SimulatedNetwork
from nsllm.simulations.questions import TOPICS, Given, anchored, ask, one_history, until
from nsllm.simulations.virtual import seeded


async def steady(network: SimulatedNetwork, nursery: trio.Nursery) -> dict[str, str | int | float]:
    """Everybody asks; every fourth question was asked elsewhere before. All answers end anchored, receipts verify.

    Raises:
        ScenarioError: what must hold did not.
    """
    rng = seeded(network.seed, "steady")
    for number in range(len(network.peers)):
        await network.start(nursery, number)
    peers = network.running()
    await until(lambda: all(peer.readiness().ready for peer in peers), "the network connected")
    asked: list[str] = []
    given: list[Given] = []
    for count in range(2 * len(peers)):
        await trio.sleep(rng.uniform(0.1, 1.5))
        repeat = count % 4 == 3
        text = rng.choice(asked[:-1] or asked) if repeat else f"What should I know about {rng.choice(TOPICS)} {count}?"
        asked.append(text)
        number = rng.randrange(len(peers))
        given.append(await ask(number, peers[number], text))
        if not repeat:
            await anchored(peers[number], given[-1].completion_id)
    for answer in given:
        await anchored(peers[answer.peer], answer.completion_id)
    await until(lambda: len({peer.ledger.height for peer in peers}) == 1, "one height everywhere")
    receipt = (await peers[given[-1].peer].receipt(given[-1].completion_id)).receipt_json
    if receipt is None:
        raise ScenarioError("the last answer has no receipt")
    verify_receipt(receipt, network.genesis, "anchored")
    one_history(peers)
    return {
        "questions": len(given),
        "cache_hits": sum(answer.source == "cache" for answer in given),
        "height": peers[0].ledger.height,
        "log_size": peers[0].ledger.log_size,
        "log_root": hex0x(peers[0].ledger.log_root),
    }
