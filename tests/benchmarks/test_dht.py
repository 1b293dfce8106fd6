"""The benchmark of look-ups: records that verify, askers that hold nothing, and what it makes of calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks import certified, dht, goals
from benchmarks.certified import Certifier
from benchmarks.cpu_time import busy_cpus, cpu_s, family
from benchmarks.look_up_costs import costs
from benchmarks.look_ups import Table, _item
from nsllm.cache_dht.index import cosine
from nsllm.cache_dht.placement import holders, shards_of
from nsllm.embedding import quantize_embedding
from nsllm.governance.defaults import default_policy
from nsllm.ids import TimeMs
from nsllm.node.founding import found, founder
from nsllm.node.identity import new_identity
from nsllm.simulations.standin import stand_in_digest
from nsllm.simulations.virtual import seeded


@pytest.fixture(scope="module")
def sixteen():
    identities = [new_identity(seeded(3, number).randbytes) for number in range(16)]
    policy = default_policy(stand_in_digest("text"), stand_in_digest("encoder"))
    members = [founder(identity) for identity in identities]
    return identities, found("bench", members, policy, TimeMs(1_700_000_000_000), local=True)


def test_records_are_certified_by_a_quorum_of_the_genesis(sixteen):
    identities, genesis = sixteen
    certifier = Certifier(genesis, [identity.member for identity in identities])
    one, other = certifier.record(1), certifier.record(2)
    validators = genesis.registry().validators()
    for record in (one, other):
        record.check(genesis.network_id(), validators)
    assert len(one.certificate.precommits) == validators.quorum == 11
    assert one.certificate.header.id() != other.certificate.header.id()
    assert genesis.policy.hybrid_ppm(one.leaf) >= genesis.policy.reuse_min_ppm


def test_like_questions_are_near_and_others_are_not():
    assert cosine(certified.embedding(1), quantize_embedding(certified.like_embedding(1))) > 0.99
    assert abs(cosine(certified.embedding(1), certified.embedding(2))) < 0.3


def test_who_asks_holds_no_copy(sixteen):
    identities, genesis = sixteen
    addresses = [identity.address for identity in identities]
    certifier = Certifier(genesis, [identity.member for identity in identities])
    for number in range(20):
        item = _item(number, certifier, genesis, addresses)
        shards = shards_of(item.record.signed.record, item.record.leaf.request_key, genesis.placement.shards)
        holding = genesis.registry().state.holding
        for shard in shards:
            held_by = holders(genesis.network_id(), shard, holding, genesis.placement.replication)
            assert addresses[item.asker] not in held_by
        assert item.giver != item.asker


class Said:
    def __init__(self, *answers):
        self._answers = list(answers)

    def ask(self, **_task):
        return self._answers.pop(0)


def test_a_turn_counts_calls_times_and_cpu_time(monkeypatch):
    table = Table("nsllm", [Said({"took_s": [0.002], "found": 1}), Said({"took_s": [0.004, 0.006], "found": 1})], [])
    spent = iter([1.0, 1.3])
    monkeypatch.setattr(Table, "cpu_s", lambda _self: next(spent))
    table.turn("hit", [(0, {"do": "get"}), (1, {"do": "get"})])
    assert table.took_ms["hit"] == [2.0, 4.0, 6.0]
    assert table.cpu_ms["hit"] == [pytest.approx(100.0)]
    found = dht._figures(table)
    assert found["remote_hit_p50_ms"] == 4.0
    assert found["remote_hit_wrong"] == 1


def test_what_counts_begins_once_the_networks_are_quiet_together(monkeypatch):
    seen = iter([{"nsllm": 0.9, "kad": 0.1}, {"nsllm": 0.2, "kad": 0.2}, {"nsllm": 0.2, "kad": 0.05}])
    monkeypatch.setattr(dht, "idle_cpus", lambda _tables: next(seen))
    assert dht.quiet([]) == {"nsllm": 0.2, "kad": 0.05}


def test_the_wait_for_quiet_has_an_end_which_is_said(monkeypatch, capsys):
    monkeypatch.setattr(dht, "idle_cpus", lambda _tables: {"nsllm": 0.9})
    monkeypatch.setattr(dht, "SETTLE_S", 0.0)
    assert dht.quiet([]) == {"nsllm": 0.9}
    assert "0.90 processors busy" in capsys.readouterr().err


def test_cpu_time_is_that_of_living_processes():
    pids = family(os.getpid())
    assert os.getpid() in pids
    before = cpu_s(pids)
    while cpu_s(pids) < before + 0.02:
        pass
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    assert cpu_s([ended.pid]) == 0.0
    assert busy_cpus([[], pids], 0.001)[0] == 0.0


def test_ratios_are_theirs_over_ours_and_none_without_them():
    figures = {"remote_hit_p50_ms": 4.0, "remote_hit_cpu_ms": 5.0, "hivemind_get_p50_ms": 12.0}
    assert dht.ratios(figures) == {
        "hivemind_get_vs_remote_hit": 3.0,
        "kad_get_vs_remote_hit": None,
        "kad_get_cpu_vs_remote_hit": None,
    }


def test_growth_is_measured_beside_that_of_log_n():
    rows = [{"peers": 10, "hit_messages": 2.0}, {"peers": 1000, "hit_messages": 3.0}]
    assert dht.growth(rows) == {
        "messages_growth": 1.5,
        "log_growth": pytest.approx(3.0),
        "messages_growth_vs_log": pytest.approx(0.5),
    }
    assert dht.growth(rows[:1])["messages_growth"] is None


def test_a_result_is_shown_to_people():
    result = dht.flat({16: dict.fromkeys((*dht.FIGURES, *dht.RATIOS), 2.0)})
    assert result["n4.remote_hit_p50_ms"] is None
    result |= {"simulated": [{"peers": 16, "hit_messages": 2.0}], **dht.growth([{"peers": 16}])}
    result["goals"] = goals.judged(goals.DHT, result)
    result["machine"] = {"cpu": "one"}
    text = dht.markdown(json.loads(json.dumps(result)))
    assert "| hivemind_get_vs_remote_hit | 2 | at least 1, hoped for 2 | yes |" in text
    assert "| messages_growth_vs_log | no data | at most 1 | no data |" in text


def test_a_simulated_look_up_is_counted(monkeypatch):
    monkeypatch.setattr("benchmarks.look_up_costs.RECORDS", 3)
    found = costs(8)
    assert found["hit_as_expected"] == found["near_hit_as_expected"] == found["miss_as_expected"] == 1.0
    # a question and a record with the end frame; where a link is slow, or the first holder has nothing, two are asked
    assert 2.0 <= found["hit_messages"] <= 8.0
    assert found["cold_hit_messages"] >= found["hit_messages"]
    assert found["hit_walks"] == 0.0
