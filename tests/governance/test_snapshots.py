"""Snapshots: all write down the same, headers commit to every byte, and who takes one in goes on like the others."""

from __future__ import annotations

import hashlib
import sqlite3

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nsllm import canonical
from nsllm.consensus.batch_conflict import conflict_of
from nsllm.consensus.errors import CertificateError, PrunedError
from nsllm.consensus.registry import admit
from nsllm.errors import PeerFault
from nsllm.governance import evm
from nsllm.governance.errors import LedgerError, MissedError, ReceiptError, SnapshotError
from nsllm.governance.motion import GovernanceTransaction, Motion, Retract, Suspend, approve
from nsllm.governance.receipt import build_receipt, receipt_text
from nsllm.governance.retraction import verify_notice
from nsllm.governance.snapshot import CHUNK_BYTES, Chunk, Offer, decode_chunk, grouped
from nsllm.governance.verify import verify_receipt
from nsllm.ids import ZERO_DIGEST, Height

EVERY = 4


@pytest.fixture
def net(ledger_network):
    """Four validators, a snapshot after every fourth block."""
    return ledger_network(4, snapshot_heights=EVERY)


async def grow(net, *ledgers, to, start=0, text="record"):
    """Blocks with one record each, and the anchors between them, until all stand at height `to`."""
    index = start
    while ledgers[0].height < to:
        wait_s = await ledgers[0].due_in()
        if wait_s is None:
            net.observe_all(ledgers[0], net.record(f"{text} {index}"))
            index += 1
        elif wait_s:
            await trio.sleep(wait_s)
        if await ledgers[0].due_in() == 0.0:
            await net.decide(*ledgers, by=net.keys.index(ledgers[0]._key))
    return index


async def take(source, taker, *, tamper=None):
    """What a peer does that is far behind: offer, chunks, installation."""
    offer, handovers = await source.snapshots.offer(taker.snapshots.epoch)
    proved = taker.snapshots.check(offer, handovers)
    await taker.snapshots.begin()
    for position in range(len(offer.manifest)):
        data = await source.snapshots.chunk(proved.digest, position)
        await taker.snapshots.put(proved, position, tamper(position, data) if tamper else data)
    retractions = await source.snapshots.retractions(taker.snapshots.known_retractions(), 99)
    await taker.snapshots.install(proved, retractions)
    return proved


async def catch_up(source, taker):
    for decided in await source.decided(Height(taker.height + 1), 64):
        await taker.commit(decided)


def rows(ledger, table):
    return ledger._state._database.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def receipt(signed, proof):
    return receipt_text(build_receipt(signed, proof))


async def test_every_header_names_the_newest_snapshot_below_it(net, autojump_clock) -> None:
    first, second = await net.open(), await net.open(by=1, keep_heights=1)
    await grow(net, first, second, to=2 * EVERY + 2)
    named = [(await first.header(Height(height))).snapshot_hash for height in range(1, 2 * EVERY + 3)]
    assert set(named[:EVERY]) == {ZERO_DIGEST}
    assert len(set(named[EVERY : 2 * EVERY])) == 1
    assert len(set(named)) == 3
    manifests = first._state.past.snapshots.manifests()
    assert [manifest.height for manifest in manifests] == [2 * EVERY, EVERY]
    assert [manifest.digest(net.network) for manifest in manifests] == [named[-1], named[EVERY]]
    assert await second.snapshots.newest() == 2 * EVERY


async def test_who_takes_a_snapshot_goes_on_like_the_others(net, autojump_clock) -> None:
    first, second, late = await net.open(), await net.open(by=1, keep_heights=1), await net.open(by=2, keep_heights=1)
    admission = admit(net.generator, net.network, net.member(net.stranger, ("contributor",)))
    first.add_admission(admission)
    first.add_checkpoint(net.checkpoint(net.keys[3]))
    await grow(net, first, second, to=3 * EVERY + 1)
    proved = await take(second, late)
    assert late.height == 3 * EVERY == proved.offer.manifest.height
    assert late.registry.get(net.stranger.address) == admission.member
    assert late.registry.state == first.registry.state
    await catch_up(second, late)
    assert (late.height, late.log_root, late._state.parent) == (first.height, first.log_root, first._state.parent)
    evm._transition.cache_clear()  # each executes by itself what follows
    await grow(net, late, first, second, to=5 * EVERY + 2, start=100, text="later")
    assert net.shown(await late.summary(1)) == net.shown(await first.summary(1))
    assert late._state.past.snapshots.manifests() == first._state.past.snapshots.manifests()
    # What was certified before is settled for it too; what it takes part in since, it can prove.
    assert await late.unsettled([net.record("record 0").record.digest()]) == []
    signed = net.record("later 100")
    proof = await late.proofs.of(signed.record.digest())
    assert verify_receipt(receipt(signed, proof), net.genesis, "anchored").level == "anchored"


async def test_a_snapshot_reaches_over_epochs(net, autojump_clock) -> None:
    first, late = await net.open(keep_heights=1), await net.open(by=1)
    await grow(net, first, to=3)
    now = net.clock.now_ms()
    motion = Motion(
        action=Suspend(address=net.keys[3].address),
        proposer=net.keys[0].address,
        created_ms=now,
        expires_ms=now + 60_000,
    )
    approvals = tuple(approve(key, net.network, motion) for key in net.keys[:3])
    assert await first.add_motion(GovernanceTransaction(motion=motion, approvals=approvals))
    await grow(net, first, to=2 * EVERY + 1, start=50)
    assert first.validators.epoch == 1
    await take(first, late)
    assert late.validators == first.validators
    await catch_up(first, late)
    await grow(net, first, late, to=4 * EVERY, start=100)
    assert late._state.parent == first._state.parent


async def test_convictions_come_with_a_snapshot_and_what_waits_to_be_approved_stays(net, autojump_clock) -> None:
    first, late = await net.open(keep_heights=1), await net.open(by=1)
    await grow(net, first, to=3)
    assert first.add_evidence(
        conflict_of(*(net.batch(net.keys[3], net.record(text), number=1)[0] for text in ("one", "other")))
    )
    await grow(net, first, to=2 * EVERY + 1, start=50)
    now = net.clock.now_ms()
    action, proposer = Suspend(address=net.keys[2].address), net.keys[0]
    motion = Motion(action=action, proposer=proposer.address, created_ms=now, expires_ms=now + 3_600_000)
    approvals = tuple(approve(key, net.network, motion) for key in (net.keys[0], net.keys[3]))
    assert await late.add_motion(GovernanceTransaction(motion=motion, approvals=approvals))
    await take(first, late)
    assert late._state.offences == first._state.offences != {}
    assert [row.offence_height for row in late._state.offences.values()] == [None]
    [waiting] = late.motions()
    assert [each.validator for each in waiting.approvals] == [proposer.address], "the convicted one's counts no more"


async def test_the_proofs_of_own_records_outlive_their_blocks(net, autojump_clock) -> None:
    ledger, archive = await net.open(key=net.keys[0], keep_heights=1), await net.open(by=1)
    own, wanted, others = net.record("own", net.keys[0]), net.record("wanted"), net.record("others")
    ledger.want(wanted.record.digest())
    net.observe_all(ledger, own, wanted, others)
    await grow(net, ledger, archive, to=2)
    before = await ledger.proofs.of(own.record.digest())
    saved = receipt(own, before)
    await grow(net, ledger, archive, to=6 * EVERY)
    kept_from = (await ledger.summary()).kept_from
    assert kept_from == 5 * EVERY
    assert rows(ledger, "block") == EVERY + 1
    assert rows(archive, "block") == 6 * EVERY
    with pytest.raises(PrunedError, match=f"blocks below {kept_from} are pruned"):
        await ledger.decided(Height(1), 4)
    for signed in (own, wanted):
        proof = await ledger.proofs.of(signed.record.digest())
        assert proof == await archive.proofs.of(signed.record.digest())
        assert verify_receipt(receipt(signed, proof), net.genesis, "anchored").level == "anchored"
    assert await ledger.proofs.of(others.record.digest()) is None
    assert await archive.proofs.of(others.record.digest()) is not None
    assert verify_receipt(saved, net.genesis).height == 1
    assert rows(ledger, "wanted") == 0


async def test_a_snapshot_keeps_the_proofs_of_own_records(net, autojump_clock) -> None:
    first, late = await net.open(keep_heights=1), await net.open(by=1, keep_heights=1)
    own = net.record("own", net.keys[1])
    net.observe_all(first, own)
    await grow(net, first, late, to=3)
    await grow(net, first, to=4 * EVERY + 1, start=10)
    missed = net.record("record 10", None)
    await take(first, late)
    proof = await late.proofs.of(own.record.digest())
    assert verify_receipt(receipt(own, proof), net.genesis, "anchored").level == "anchored"
    with pytest.raises(MissedError, match="far behind"):
        await late.proofs.wait_certified(missed)


async def test_kept_proofs_are_told_in_order_and_forgotten_for_good(net, autojump_clock, tmp_path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = await net.open(path, keep_heights=1)
    own = [net.record(f"own {number}", net.keys[0]) for number in range(5)]
    wanted, later = net.record("wanted"), net.record("later")
    for signed in (wanted, later):
        ledger.want(signed.record.digest())
    net.observe_all(ledger, *own, wanted)
    await grow(net, ledger, to=6 * EVERY)
    expected = sorted(signed.record.digest() for signed in (*own, wanted, later))  # of `later` there is no block yet
    first = await ledger.proofs.kept(None, 3)
    assert [*first, *await ledger.proofs.kept(first[-1], 99)] == expected
    assert await ledger.proofs.kept(expected[-1], 99) == []
    gone = [own[0].record.digest(), wanted.record.digest(), later.record.digest()]
    await ledger.proofs.forget(gone)
    await ledger.close()
    again = await net.open(path, keep_heights=1)
    assert await again.proofs.kept(None, 99) == sorted(signed.record.digest() for signed in own[1:])
    for signed in own[1:]:
        proof = await again.proofs.of(signed.record.digest())
        assert verify_receipt(receipt(signed, proof), net.genesis, "anchored").level == "anchored"
    assert [await again.proofs.of(record) for record in gone] == [None] * 3


async def test_scores_from_others_prove_as_much_as_they_say(net, autojump_clock) -> None:
    archive, late = await net.open(), await net.open(by=1, keep_heights=1)
    await grow(net, archive, late, to=2)
    now = net.clock.now_ms()
    action, proposer = Suspend(address=net.keys[3].address), net.keys[0].address
    motion = Motion(action=action, proposer=proposer, created_ms=now, expires_ms=now + 60_000)
    approvals = tuple(approve(key, net.network, motion) for key in net.keys[:3])
    assert await archive.add_motion(GovernanceTransaction(motion=motion, approvals=approvals))
    await grow(net, archive, to=EVERY, start=50)
    missed = net.record("missed", net.keys[1])
    net.observe_all(archive, missed)
    await net.decide(archive)
    scores = (await archive.proofs.wait_certified(missed)).scores
    assert scores.certificate.header.epoch == 1
    digest = missed.record.digest()
    assert await late.proofs.of(digest, scores) is None, "an epoch that has not begun here"
    await grow(net, archive, to=3 * EVERY + 1, start=100)
    await take(archive, late)
    assert await late.proofs.of(digest) is None
    text = receipt(missed, await late.proofs.of(digest, scores))
    assert verify_receipt(text, net.genesis).level == "certified"
    with pytest.raises(ReceiptError, match="the receipt is certified, required is logged"):
        verify_receipt(text, net.genesis, "logged")
    # What a ledger knows itself goes further, whatever it is given.
    assert await archive.proofs.of(digest, scores) == await archive.proofs.of(digest)


async def test_pruning_bounds_every_table(net, autojump_clock, tmp_path) -> None:
    ledger = await net.open(tmp_path / "ledger.sqlite", keep_heights=1)
    counts = []
    start = 0
    for turn in range(2, 12):
        start = await grow(net, ledger, to=turn * EVERY, start=start)
        tables = ("block", "scored", "network_log_entry", "network_log_node", "evm", "anchor", "snapshot_chunk")
        counts.append({table: rows(ledger, table) for table in tables})
    for table in counts[0]:
        assert max(count[table] for count in counts[5:]) <= max(count[table] for count in counts[:5]) * 1.6 + 8, table
    path = tmp_path / "ledger.sqlite"
    await ledger.close()
    again = await net.open(path, keep_heights=1)
    assert again.height == 11 * EVERY
    await grow(net, again, to=12 * EVERY, start=500)
    assert sqlite3.connect(path).execute("PRAGMA auto_vacuum").fetchone() == (2,)


async def test_what_is_settled_is_forgotten_after_a_day(net, autojump_clock) -> None:
    first, second = await net.open(), await net.open(by=1, keep_heights=1)
    signed = net.record("first")
    net.observe_all(first, signed)
    await net.run_until_quiet(first, second)
    await trio.sleep(23 * 3600)
    await grow(net, first, second, to=2 * EVERY)
    assert await second.unsettled([signed.record.digest()]) == []
    await trio.sleep(2 * 3600)
    await grow(net, first, second, to=4 * EVERY, start=50)
    for ledger in (first, second):
        assert await ledger.unsettled([signed.record.digest()]) == [signed.record.digest()]
    assert first._state.past.snapshots.manifests() == second._state.past.snapshots.manifests()


async def test_offers_that_prove_nothing_are_refused(net, ledger_network, autojump_clock) -> None:
    first, late = await net.open(), await net.open(by=1)
    await grow(net, first, to=2 * EVERY + 2)
    offer, _ = await first.snapshots.offer(0)
    block, certificate, manifest = offer.block, offer.certificate, offer.manifest
    other = net.certify(block.block, net.keys[:2])
    before = (await first.decided(Height(EVERY), 1))[0].certificate
    wrong = {
        "another size": replace(offer, manifest=replace(manifest, size_bytes=manifest.size_bytes + 1)),
        "another chunk": replace(offer, manifest=replace(manifest, chunks=bytes(32) + manifest.chunks[32:])),
        "another height": replace(offer, manifest=replace(manifest, height=Height(manifest.height + 1))),
        "a header before it": replace(offer, certificate=before),
        "a certificate of too few": replace(offer, block=other),
        "another block": replace(offer, block=(await first.decided(Height(2), 1))[0]),
        "a forged header": replace(
            offer, certificate=replace(certificate, header=replace(certificate.header, snapshot_hash=bytes(32)))
        ),
        "another body": replace(
            offer, block=replace(block, block=replace(block.block, body=replace(block.block.body, entries=(b"x",))))
        ),
    }
    late.snapshots.check(offer, ())
    for what, bad in wrong.items():
        with pytest.raises(PeerFault):
            late.snapshots.check(bad, ())
            pytest.fail(what)
    stranger = await ledger_network(4, "others", snapshot_heights=EVERY).open()
    with pytest.raises(CertificateError):
        stranger.snapshots.check(offer, ())


async def test_every_byte_of_offer_and_chunks_matters(net, autojump_clock) -> None:
    """A bit is flipped in each byte of each chunk; and in many of the offer, which is long because of signatures."""
    first, late = await net.open(), await net.open(by=1)
    await grow(net, first, to=EVERY + 1)
    offer, _ = await first.snapshots.offer(0)
    proved = late.snapshots.check(offer, ())
    await late.snapshots.begin()
    for position in range(len(offer.manifest)):
        data = await first.snapshots.chunk(proved.digest, position)
        for at in range(0, len(data), 1 if len(data) < 2000 else 97):
            bad = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
            with pytest.raises(SnapshotError, match=f"chunk {position} of snapshot {EVERY}"):
                late._state.past.snapshots.put_incoming(offer.manifest, position, bad)
    encoded = canonical.encode(offer)
    for at in range(0, len(encoded), 7):
        bad = encoded[:at] + bytes([encoded[at] ^ 1 << at % 8]) + encoded[at + 1 :]
        with pytest.raises(PeerFault):
            late.snapshots.check(canonical.decode(bad, Offer, limit_bytes=2**20), ())
    assert rows(late, "incoming_chunk") == 0
    assert late.height == 0


@pytest.mark.parametrize("missing", [0, -1])
async def test_a_snapshot_that_is_not_whole_is_never_installed(net, autojump_clock, tmp_path, missing) -> None:
    first, late = await net.open(), await net.open(tmp_path / "late.sqlite", by=1)
    await grow(net, first, late, to=1)
    await grow(net, first, to=2 * EVERY + 1, start=10)
    offer, handovers = await first.snapshots.offer(0)
    proved = late.snapshots.check(offer, handovers)
    before = await late.summary()
    positions = set(range(len(offer.manifest))) - {missing % len(offer.manifest)}
    for position in positions:
        await late.snapshots.put(proved, position, await first.snapshots.chunk(proved.digest, position))
    with pytest.raises(SnapshotError, match="missing or damaged"):
        await late.snapshots.install(proved, ())
    assert await late.summary() == before
    await late.close()
    late = await net.open(tmp_path / "late.sqlite", by=1)
    assert await late.summary() == before
    assert rows(late, "incoming_chunk") == 0
    await take(first, late)
    assert late.height == 2 * EVERY
    with pytest.raises(LedgerError, match="not above block"):
        await late.snapshots.install(proved, ())


async def test_a_certified_snapshot_that_contradicts_its_block_is_not_installed(net, autojump_clock) -> None:
    """Not even a quorum makes a peer believe what does not lead to the roots that it certifies."""
    first, late = await net.open(), await net.open(by=1)
    await grow(net, first, to=2 * EVERY + 1)
    offer, _ = await first.snapshots.offer(0)
    chunks = [
        first._state.past.snapshots.chunk(offer.manifest.digest(net.network), i) for i in range(len(offer.manifest))
    ]
    part = decode_chunk(chunks[0])
    chunks[0] = canonical.encode(Chunk(part=replace(part, peaks=(bytes(32), *part.peaks[1:]))))
    digests = b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)
    manifest = replace(offer.manifest, chunks=digests)
    header = replace(offer.certificate.header, snapshot_hash=manifest.digest(net.network))
    above = (await first.decided(Height(2 * EVERY + 1), 1))[0].block
    forged = net.certify(replace(above, header=header)).certificate
    proved = late.snapshots.check(replace(offer, manifest=manifest, certificate=forged), ())
    for position, chunk in enumerate(chunks):
        await late.snapshots.put(proved, position, chunk)
    with pytest.raises(SnapshotError, match="leads to log root"):
        await late.snapshots.install(proved, ())
    assert late.height == 0
    await catch_up(first, late)
    assert late._state.parent == first._state.parent


@given(sizes=st.lists(st.integers(min_value=0, max_value=CHUNK_BYTES + 9), max_size=40))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_groups_hold_all_rows_in_order_and_are_bounded(sizes) -> None:
    groups = list(grouped((size, (index, size)) for index, size in enumerate(sizes)))
    assert [row for group in groups for row in group] == list(enumerate(sizes))
    assert all(group for group in groups)
    assert all(len(group) == 1 or sum(size for _, size in group) <= CHUNK_BYTES for group in groups)


async def test_retractions_outlive_their_blocks_and_are_asked_for_with_a_snapshot(net, autojump_clock) -> None:
    first, late = await net.open(keep_heights=1), await net.open(by=1, keep_heights=1)
    own, other = net.record("own", net.keys[0]), net.record("other", net.keys[1])
    net.observe_all(first, own, other)
    await net.run_until_quiet(first, late)
    for signed in (own, other):
        now = net.clock.now_ms()
        action = Retract(record=signed.record.digest())
        motion = Motion(action=action, proposer=net.keys[0].address, created_ms=now, expires_ms=now + 60_000)
        approvals = tuple(approve(key, net.network, motion) for key in net.keys[:3])
        assert await first.add_motion(GovernanceTransaction(motion=motion, approvals=approvals))
        await net.decide(first)
    await grow(net, first, to=5 * EVERY + 1, start=10)
    assert (await first.summary()).kept_from > 4
    offer, handovers = await first.snapshots.offer(0)
    proved = late.snapshots.check(offer, handovers)
    for position in range(len(offer.manifest)):
        await late.snapshots.put(proved, position, await first.snapshots.chunk(proved.digest, position))
    proofs = await first.snapshots.retractions(0, 99)
    assert len(proofs) == 2
    forged = replace(proofs[0], certificate=replace(proofs[0].certificate, round=1))
    for wrong in ((), proofs[:1], (forged, proofs[1]), (proofs[1], proofs[0])):
        with pytest.raises(PeerFault):
            await late.snapshots.install(proved, wrong)
    await late.snapshots.install(proved, proofs)
    for ledger, signed in ((first, own), (late, other)):
        proof = await ledger.proofs.of(signed.record.digest())
        assert verify_receipt(receipt(signed, proof), net.genesis).revoked_height == proof.retraction.height
        notice = canonical.to_json(await ledger.proofs.retraction(signed.record.digest()))
        assert verify_notice(notice, signed.record.digest(), net.genesis) == proof.retraction.height
