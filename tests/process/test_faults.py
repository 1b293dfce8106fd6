"""Peers that die, are killed in mid-vote, lose their worker or their parent; the others go on, and they come back."""

from __future__ import annotations

import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from nsllm.consensus.message import decode_message
from nsllm.consensus.vote import Proposal, Vote

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]

numbers = count(1)


def question() -> str:
    """One that nobody asked before."""
    return f"What is {next(numbers)} times {os.getpid()}?"


def certify(net, index: int) -> str:
    """A new question, asked and certified; its completion id."""
    answer = net.ask(index, question())
    assert answer["nsllm"]["publication"] == "pending", answer["nsllm"]
    net.receipt(index, answer["id"])
    return answer["id"]


def contradictions(tap: str) -> list[tuple[object, ...]]:
    """Places (what, height, round, kind) at which more than one thing was signed or sent."""
    said: dict[tuple[object, ...], set[object]] = {}
    for line in tap.splitlines():
        what, _, message = line.partition(" ")
        body = decode_message(bytes.fromhex(message))
        if isinstance(body, Vote):
            said.setdefault((body.height, body.round, body.kind), set()).add(body.value)
        elif isinstance(body, Proposal):
            place = (body.height, body.round, f"proposal of {body.proposer.hex()}")
            said.setdefault(place, set()).add((body.block.header.id(), body.valid_round))
        assert what in {"signed", "sent"}
    return [place for place, values in said.items() if len(values) > 1]


@pytest.mark.parametrize(
    ("moment", "nth", "lives"),
    [("vote_sent", 1, 1), ("vote_written", 1, 20), ("committing", 1, 2)],
    ids=["in mid-vote", "20 times between writing and sending", "before storing a block"],
)
def test_a_validator_killed_in_consensus(tiny_net, tmp_path, moment: str, nth: int, lives: int):
    net = tiny_net
    tap = tmp_path / "tap"
    tap.touch()
    seen = [len(net.log(index)) for index in range(4)]
    net.stop(3)
    faulty = net.start(3, faulty=(moment, str(nth), str(lives), str(tap)))
    certified = 0
    # The others go on certifying, whether it is there, dying, or gone.
    while faulty.poll() is None:
        certify(net, certified % 3)
        certified += 1
    assert faulty.returncode == 0, net.tail(3)
    certify(net, 0)
    text = tap.read_text()
    net.start(3)
    net.until_ready(3)
    net.until_level()
    certify(net, 3)
    signed = [line for line in text.splitlines() if line.startswith("signed ")]
    # a peer that only caught up stores blocks without a vote of its own
    assert len(signed) >= (lives if moment.startswith("vote") else 0)
    assert contradictions(text) == []
    for index in range(4):
        assert "offence" not in net.log(index)[seen[index] :]
        assert "abstaining" not in net.log(index)[seen[index] :]


def test_a_generator_killed_right_after_its_certificate(tiny_net, tmp_path):
    """Its record was certified and pushed to nobody: the validators bring it to its holders."""
    net = tiny_net
    tap = tmp_path / "tap"
    net.stop(3)
    faulty = net.start(3, faulty=("committed", "1", "1", str(tap), "engine"))
    net.until_ready(3)
    held = sum(net.status(index)["cache"]["records"] for index in range(3))
    asked = question()
    answer = net.ask(3, asked, temperature=0)
    assert faulty.wait(240) == 0, net.tail(3)
    text = answer["choices"][0]["message"]["content"]
    net.until(
        lambda: sum(net.status(index)["cache"]["records"] for index in range(3)) > held, "a holder has the record"
    )
    hits = [net.hit(index, asked, temperature=0) for index in range(3)]
    assert net.places[3].address in {hit["headers"]["x-nsllm-generator"] for hit in hits}
    assert [hit["choices"][0]["message"]["content"] for hit in hits] == [text] * 3
    net.start(3)
    net.until_ready(3)
    assert net.receipt(3, answer["id"], "anchored").json()["signed"]["record"]["text"] == text


def test_a_killed_model_worker_is_replaced(tiny_net):
    net = tiny_net
    before = net.status(1)["engine"]["restarts"]
    worker = net.worker(1)
    with ThreadPoolExecutor(1) as pool:
        worker.send_signal(signal.SIGSTOP)
        # Whatever this request has in the worker dies with it.
        asked = pool.submit(net.post, 1, question())
        net.until(lambda: net.get(1, "/healthz").status_code == 200, "the peer answers beside a frozen worker")
        worker.send_signal(signal.SIGKILL)
        net.until(lambda: net.status(1)["engine"]["restarts"] > before, "the loss is noticed")
        assert "engine is restarting" in net.get(1, "/readyz").json()["detail"]
        certify(net, 0)
        net.until_ready(1)
        answer = asked.result(240)
    assert answer.status_code == 200 or (answer.status_code == 503 and answer.json()["error"]["message"])
    assert net.worker(1).pid != worker.pid
    certify(net, 1)
    assert net.processes[1].poll() is None


def test_a_restarted_peer_still_has_its_receipts_and_records(tiny_net):
    net = tiny_net
    asked = question()
    answer = net.ask(2, asked)
    receipt = net.receipt(2, answer["id"], "anchored")
    net.hit(0, asked)
    net.until_level()
    before = net.status(2)
    net.stop(2)
    meanwhile = certify(net, 1)
    net.start(2)
    net.until_ready(2)
    net.until_level()
    assert net.receipt(2, answer["id"], "anchored").text == receipt.text
    after = net.status(2)
    assert after["peer_id"] == before["peer_id"]
    assert after["address"] == before["address"]
    assert after["cache"]["records"] >= before["cache"]["records"]
    assert after["logs"]["peer_log_size"] >= before["logs"]["peer_log_size"]
    assert after["notices"] == before["notices"]
    net.hit(2, asked)
    assert net.receipt(1, meanwhile, "anchored")


def test_peers_and_workers_end_when_the_devnet_is_killed(tiny_models, tmp_path, lay_out_tiny, start_devnet):
    net = lay_out_tiny(tmp_path / "net", tiny_models, peers=2)
    devnet = start_devnet(net)
    family = devnet.family()
    assert len(family) >= 5  # itself, two peers, two workers
    devnet.process.send_signal(signal.SIGKILL)
    devnet.process.wait()
    assert devnet.gone(family) == []


def test_a_validator_whose_state_diverged_is_healed_as_the_manual_says(tiny_net, tmp_path):
    """docs/operations.md: stop it, move its ledger aside, keep log and guard, start it."""
    net = tiny_net
    seen = [len(net.log(index)) for index in range(4)]
    home = net.places[3].data_dir
    net.stop(3)
    net.start(3, faulty=("diverging", "1", "1", str(tmp_path / "tap")))

    def halted() -> bool:
        return "against our state" in (net.status(3)["consensus"]["halted"] or "")

    net.until(lambda: net.get(3, "/healthz").status_code == 200, "the peer answers")
    certify(net, 0)
    net.until(halted, "it has halted")
    net.kill(3)
    before = certify(net, 1)

    # What it executed wrongly is on its disk: a restart alone does not help.
    net.start(3)
    net.until(halted, "it halts again")
    assert any("consensus halted" in notice for notice in net.status(3)["notices"])
    net.stop(3)
    guard = (home / "consensus" / "guard").read_bytes()
    for path in home.glob("ledger.sqlite*"):
        path.rename(tmp_path / path.name)
    assert (home / "consensus" / "guard").read_bytes() == guard
    net.start(3)
    net.until_ready(3)
    net.until_level()
    assert net.receipt(3, certify(net, 3), "anchored")
    assert net.receipt(1, before, "anchored")

    # It votes again: without one of the others nothing is certified but with its vote.
    net.stop(2)
    certify(net, 0)
    for index in (0, 1, 3):
        assert "offence" not in net.log(index)[seen[index] :]


@pytest.mark.long
def test_a_validator_that_comes_back_from_an_old_copy(tiny_net, tmp_path):
    """Ledger, log, guard and batches of before: it says nothing otherwise than it said since, and votes again."""
    net = tiny_net
    tap, home, copy = tmp_path / "tap", net.places[3].data_dir, tmp_path / "copy"
    seen = [len(net.log(index)) for index in range(4)]
    net.stop(3)
    copy.mkdir()
    shutil.copytree(home / "consensus", copy / "consensus")
    for path in home.glob("ledger.sqlite*"):
        shutil.copy(path, copy)
    tapped = ("tapped", "1", "1", str(tap), "engine")
    net.start(3, faulty=tapped)
    net.until_ready(3)
    for index in (0, 3):
        certify(net, index)
    net.until_level()
    said = tap.read_text().count("signed ")
    assert said > 0
    net.kill(3)

    shutil.rmtree(home / "consensus")
    for path in home.glob("ledger.sqlite*"):
        path.unlink()
    shutil.copytree(copy, home, dirs_exist_ok=True)
    net.start(3, faulty=tapped)
    net.until_ready(3)
    net.until_level()
    # Without one of the others nothing is certified but with its vote.
    net.stop(2)
    certify(net, 0)
    assert tap.read_text().count("signed ") > said
    assert contradictions(tap.read_text()) == []
    net.kill(3)
    for index in (0, 1, 3):
        assert "offence" not in net.log(index)[seen[index] :]


@pytest.mark.long
def test_an_equivocator_is_convicted_and_every_peer_shows_it(lay_out_tiny, tiny_models, tmp_path, nsllm):
    """Three honest peers and one that signs everything twice, as processes: they go on, and a block names it."""
    net = lay_out_tiny(tmp_path / "net", tiny_models, peers=4, first_port=18000)
    offender = net.places[3].address
    try:
        for index in range(3):
            net.start(index)
        net.start(3, faulty=("equivocating", "1", "1", str(tmp_path / "tap")))
        net.until_ready(0, 1, 2)
        certify(net, 0)

        def convicted(index: int) -> bool:
            return [row["validator"] for row in net.status(index)["consensus"]["offences"]] == [offender]

        net.until(lambda: all(map(convicted, range(3))), "everybody shows the offender")
        certify(net, 1)
        net.until_level(0, 1, 2)
        rows = [net.status(index)["consensus"]["offences"] for index in range(3)]
        assert rows[0] == rows[1] == rows[2]
        assert rows[0][0]["kind"] == "double_vote"
        assert rows[0][0]["block"] <= net.height(0)
        assert any("offence=double_vote" in net.log(index) for index in range(3))
        shown = nsllm("status", "--api", net.url(0))
        assert "double vote at height" in shown.stdout, shown.stdout + shown.stderr
    finally:
        net.kill(3)
        net.stop()
