"""A group of three real peers out of four: the command makes it, its answers are shared, the fourth sees nothing."""

from __future__ import annotations


def test_three_of_four_share_an_answer_that_the_fourth_cannot_read(tiny_net, nsllm):
    net, question = tiny_net, "What did the three measure?"
    folders = [("--data-dir", str(place.data_dir)) for place in net.places]
    try:
        assert nsllm("group", "create", "trio", *folders[0]).returncode == 0
        invite = nsllm("group", "invite", "trio", *folders[0]).stdout.strip()
        for index in (1, 2):
            joined = nsllm("group", "join", invite, *folders[index])
            assert joined.returncode == 0, joined.stderr
            assert invite.split(":")[2] not in joined.stdout + joined.stderr
        asked = net.ask(0, question, visibility="group:trio")
        assert asked["headers"]["x-nsllm-group"] == "trio"
        net.receipt(0, asked["id"], "anchored")
        net.hit(1, question, visibility="group:trio")
        refused = net.post(3, question, visibility="group:trio")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "visibility")
        text = asked["choices"][0]["message"]["content"].encode()
        for place in net.places:
            shared = [*place.data_dir.glob("records.sqlite*"), *place.data_dir.glob("sealed.sqlite*"), place.log]
            every = [path for path in place.data_dir.rglob("*") if path.is_file()] if place.index == 3 else shared
            assert [path for path in every if text in path.read_bytes() or question.encode() in path.read_bytes()] == []
    finally:
        for folder in folders[:3]:
            nsllm("group", "leave", "trio", *folder)
    assert net.post(1, question, visibility="group:trio").status_code == 400
