"""GPTCache under a stream of questions; runs in the environment that `make bench-setup` builds for it.

Imports nothing of the product. As its documents set it up: questions and answers in SQLite, embeddings in FAISS, and
its `SearchDistanceEvaluation` against its threshold. The embeddings are handed in, so that all caches compare the same
vectors; nothing is evicted, and no row is written about a hit, which is no part of choosing an answer.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gptcache import Cache, Config
from gptcache.adapter.api import get, put
from gptcache.manager import CacheBase, VectorBase, get_data_manager
from gptcache.processor.pre import get_prompt
from gptcache.similarity_evaluation import SearchDistanceEvaluation


def asked(cache: Any, stream: Sequence[str]) -> list[int | None]:
    """For each question, the number of the earlier one whose answer it got; None where it got none and left its own."""
    found: list[int | None] = []
    for number, question in enumerate(stream):
        answer = get(question, cache_obj=cache)
        found.append(None if answer is None else int(answer))
        if answer is None:
            put(question, str(number), cache_obj=cache)
    return found


def opened(folder: Path, threshold: float, vectors: Mapping[str, np.ndarray], most: int) -> Any:
    """An empty cache in `folder`, with room for so many questions."""
    folder.mkdir()
    cache = Cache()
    cache.init(
        pre_embedding_func=get_prompt,
        embedding_func=lambda question, **_: vectors[question],
        data_manager=get_data_manager(
            CacheBase("sqlite", sql_url=f"sqlite:///{folder / 'sqlite.db'}"),
            VectorBase("faiss", dimension=len(next(iter(vectors.values()))), index_path=str(folder / "faiss.index")),
            max_size=most,
        ),
        similarity_evaluation=SearchDistanceEvaluation(),
        config=Config(similarity_threshold=threshold, disable_report=True),
    )
    return cache


def main() -> None:
    """Read the plan; answer with one line, a run for each threshold."""
    plan: Mapping[str, Any] = json.loads(sys.stdin.readline())
    flat = np.frombuffer(base64.b64decode(plan["vectors"]), np.int8).astype(np.float32)
    vectors = dict(zip(plan["texts"], flat.reshape(len(plan["texts"]), -1), strict=True))
    stream = [plan["texts"][number] for number in plan["stream"]]
    runs = [
        asked(opened(Path(plan["folder"]) / f"{threshold}", threshold, vectors, len(stream) + 1), stream)
        for threshold in plan["thresholds"]
    ]
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
