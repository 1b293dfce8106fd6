"""Poisoning: an adversary publishes records for target questions, and the victims ask them in other words.

Incoherent records (words drawn from all answers), off-topic ones (another question's answer) and fluent lies, each in
turn: the right answer with its claim turned around, lies written by hand (`fluent_lies.txt`, with questions of their
own) and those that the default model writes when it is asked for one. Undefended, the nearest record above a cosine of
0.9 is served. Defended are certificates and policy (validators score with the rubric's models, a record below the reuse
limit is not served), guards, bound, dissent between generators, and audits that learn.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import trio

from benchmarks.score_separation import generate, judged
from nsllm.cache_dht.calibration import shipped
from nsllm.cache_dht.judge import compatible
from nsllm.cache_dht.observations import Tally
from nsllm.cache_dht.reuse import Candidate, SemanticReuse
from nsllm.embedding import quantize_embedding
from nsllm.governance.defaults import default_policy
from nsllm.ids import Address, Digest
from nsllm.node.engine.models import default_home, ensure_default_models
from nsllm.node.engine.port import Engine
from nsllm.node.engine.supervisor import WorkerEngine

HONEST, LIAR, VICTIM = (Address(bytes([n]) * 20) for n in (1, 2, 3))
RECORDS: Final = 3
"""Records of the adversary for each question: k."""
ASKED: Final = 6
"""Times that each question is asked, in other words each time."""
THRESHOLD: Final = 0.9
UNFIT: Final = ("incoherent", "off topic")
"""What validators are to keep from being reused at all."""
FLUENT: Final = ("by rule", "by hand", "by a model")
LIE: Final = "Answer with one short sentence that sounds right and is false: {}"
LIE_TOKENS: Final = 40
WORDINGS: Final = ("{}", "please tell me {}", "{} thanks", "could you tell me {}", "do you know {}", "i wonder {}")


def by_hand() -> list[tuple[str, str, str]]:
    """Question, right answer and lie."""
    lines = Path(__file__).with_name("fluent_lies.txt").read_text("utf-8").splitlines()
    rows = (line.split("\t") for line in lines if not line.startswith("#"))
    return [(question, answer, lie) for question, answer, lie in rows]


def spoil(kind: str, answer: str, others: Sequence[str], rng: random.Random) -> str:
    """A wrong answer of a kind, made of the right one or of other questions'."""
    if kind == "off topic":
        return rng.choice([other for other in others if other != answer])
    if kind == "incoherent":
        words = [word for other in others for word in other.split()]
        return " ".join(rng.choices(words, k=25))
    turned = re.sub(r"\b(is|are|was|were|can|will|does|do)\b", r"\1 not", answer, count=1)
    return turned if turned != answer else f"It is false that {answer[:1].lower()}{answer[1:]}"


async def _lies(
    engine: Engine, kind: str, pairs: Sequence[tuple[str, str]], rng: random.Random
) -> list[tuple[str, str, list[str]]]:
    """Questions, right answers, and what the adversary answers."""
    if kind == "by hand":
        return [(question, answer, [lie] * RECORDS) for question, answer, lie in by_hand()[: len(pairs)]]
    found: list[tuple[str, str, list[str]]] = []
    for question, answer in pairs:
        if kind == "by a model":
            asked = LIE.format(question)
            lies = [await generate(engine, asked, rng.randrange(1 << 30), LIE_TOKENS) for _ in range(RECORDS)]
        else:
            lies = [spoil(kind, answer, [other for _, other in pairs], rng) for _ in range(RECORDS)]
        found.append((question, answer, lies))
    return found


async def hijacks(pairs: Sequence[tuple[str, str]], seed: int) -> dict[str, Any]:
    """Share of the victims' questions that the adversary's records answer, by kind; of fluent lies apart.

    Args:
        pairs: questions and right answers; half of them have an honest record beside the adversary's.
        seed: of the adversary's choices and the audits.
    """
    paths = ensure_default_models(default_home(os.environ), lambda _progress: None)
    engine = WorkerEngine(text=paths.text, encoder=paths.encoder, threads=1, max_queue=64, rng=random.Random(1))
    rng = random.Random(seed)
    rows: dict[str, dict[str, Any]] = {}
    async with engine.running():
        await engine.wait_ready()
        info = engine.info()
        policy = default_policy(info.text.digest, info.encoder.digest)
        for kind in (*UNFIT, *FLUENT):
            counts = {"asked": 0, "hijacked": 0, "hijacked_undefended": 0, "certified": 0, "published": 0}
            reuse = SemanticReuse(shipped(), Tally(), VICTIM, random.Random(seed))
            for number, (question, answer, lies) in enumerate(await _lies(engine, kind, pairs, rng)):
                bare = question.rstrip("?. ").lower()
                texts = [w.format(bare) for w in WORDINGS[:ASKED]]
                vectors = await engine.embed([question, *texts])
                records = [(HONEST, answer)] if number % 2 else []
                for bad in lies:
                    counts["published"] += 1
                    certified = (await judged(engine, policy, question, bad))["reused"]
                    counts["certified"] += bool(certified)
                    records.append((LIAR, bad if certified else ""))
                _ask(reuse, number, question, texts, vectors, records, counts)
            rows[kind if kind in UNFIT else f"fluent lie, {kind}"] = {**counts, **_rates([counts])}
    unfit, fluent = [*rows.values()][: len(UNFIT)], [*rows.values()][len(UNFIT) :]
    apart = {f"fluent_{name}": rate for name, rate in _rates(fluent).items()}
    undefended = apart["fluent_hijack_rate_undefended"]
    ratio = apart["fluent_hijack_rate"] / undefended if undefended else None
    return {**_rates(unfit), **apart, "fluent_hijack_vs_undefended": ratio, "hijacks": rows}


def _rates(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    asked = sum(row["asked"] for row in rows)
    names = {"hijack_rate": "hijacked", "hijack_rate_undefended": "hijacked_undefended"}
    return {name: sum(row[count] for row in rows) / asked for name, count in names.items()}


def _ask(
    reuse: SemanticReuse,
    number: int,
    question: str,
    texts: Sequence[str],
    vectors: Sequence[Sequence[float]],
    records: Sequence[tuple[Address, str]],
    counts: dict[str, int],
) -> None:
    """The victims' questions against the records; an empty answer was refused a certificate."""
    embedding = quantize_embedding(list(vectors[0]))
    for text, vector in zip(texts, vectors[1:], strict=True):
        near = sum(a * b for a, b in zip(vectors[0], vector, strict=True))
        counts["asked"] += 1
        # Undefended: all records are equally near; the adversary's are the more, and the newest.
        counts["hijacked_undefended"] += near >= THRESHOLD
        candidates = [
            Candidate(Digest(bytes([number, at]) * 16), question, answer, by, embedding, near, 0)
            for at, (by, answer) in enumerate(records)
            if answer
        ]
        choice = reuse.choose(text, candidates, 20_000, compatible)
        if choice.best is None:
            continue
        lied = choice.best.candidate.generator == LIAR
        if choice.doubt is None:
            counts["hijacked"] += lied
        elif choice.doubt in {"audit", "bound", "dissent"}:
            reuse.observe(choice.best, right=not lied)


def run(pairs: Sequence[tuple[str, str]], seed: int) -> dict[str, Any]:
    """`hijacks`, in a trio of its own."""
    return trio.run(hijacks, pairs, seed)
