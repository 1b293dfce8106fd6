"""An answer is taken back on real peers: validators vote, holders delete it and prove that, receipts say it."""

from __future__ import annotations

import json


def test_validators_take_an_answer_back(tiny_net, nsllm, tmp_path):
    net, question = tiny_net, "What shall be taken back?"
    genesis = ("--genesis", str(net.genesis))
    asked = net.ask(0, question, visibility="public")
    before = tmp_path / "before.json"
    before.write_text(net.receipt(0, asked["id"], "anchored").text)
    report = json.loads(nsllm("verify", str(before), *genesis, "--json").stdout)
    record = report["record"]
    assert report["revoked_height"] is None

    def reused(index: int) -> bool:
        """By a peer that holds the record; a private question publishes no second one."""
        return net.ask(index, question, visibility="private")["headers"]["x-nsllm-source"] == "cache"

    net.until(lambda: any(map(reused, (1, 2, 3))), "a cache hit")
    folders = [("--data-dir", str(place.data_dir)) for place in net.places]
    assert nsllm("governance", "removals", record, *folders[0]).returncode == 1, "not revoked yet"

    proposed = nsllm("governance", "propose", "retract", record, *folders[0], "--json")
    motion = json.loads(proposed.stdout)["motion"]
    for folder in folders[1:3]:
        net.until(lambda f=folder: nsllm("governance", "approve", motion[:18], *f).returncode == 0, "approved")
    net.until_level()
    net.until(lambda: nsllm("governance", "removals", record, *folders[0]).returncode == 0, "removal proved by all")
    told = json.loads(nsllm("governance", "removals", record, *folders[0], "--json").stdout)
    assert [row["verdict"] for row in told["holders"]] == ["removed"] * 4
    height = told["revoked_height"]

    text = asked["choices"][0]["message"]["content"].encode()
    for place in net.places:
        for path in place.data_dir.glob("records.sqlite*"):
            assert text not in path.read_bytes(), path
    for index in range(3):
        assert net.ask(index, question, visibility="private")["headers"]["x-nsllm-source"] == "engine"

    after = tmp_path / "after.json"
    answer = net.receipt(0, asked["id"], "anchored")
    assert answer.headers["x-nsllm-revoked-height"] == str(height)
    after.write_text(answer.text)
    done = nsllm("verify", str(after), *genesis)
    assert done.returncode == 3, done.stdout + done.stderr
    assert f"revoked at height {height}" in done.stdout
    assert nsllm("verify", str(before), *genesis).returncode == 0, "what is older cannot know"
    online = nsllm("verify", str(before), *genesis, "--api", net.url(1), "--json")
    assert (online.returncode, json.loads(online.stdout)["revoked_height"]) == (3, height)
    assert nsllm("verify", str(before), *genesis, "--api", "http://127.0.0.1:9").returncode == 4
