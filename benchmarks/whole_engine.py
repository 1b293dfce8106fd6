"""A real worker behind its supervisor, messages and sampling included: many answers at once, and known beginnings."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import trio

from nsllm.node.engine.port import EngineRequest, Piece
from nsllm.node.engine.supervisor import WorkerEngine
from nsllm.record import Message, Sampling

STREAMS: Final = 32
ANSWER_TOKENS: Final = 48
SYSTEM_TOKENS: Final = 500
LOOK_S: Final = 0.02
"""Between looks at the worker's memory."""


@dataclass(frozen=True)
class Models:
    """Folders of text model and encoder."""

    text: Path
    encoder: Path


def whole_engine(
    models: Models, threads: int, prompts: Sequence[str], systems: Sequence[str], rounds: int
) -> dict[str, float]:
    """Figures of one worker.

    Args:
        models: what it runs.
        threads: that it computes with.
        prompts: questions, 32 a round.
        systems: system prompts of about 500 tokens, one for each pair of questions; none begins like another.
        rounds: of 32 answers at once; medians count.
    """
    engine = WorkerEngine(
        text=models.text,
        encoder=models.encoder,
        threads=threads,
        max_queue=2 * STREAMS,
        max_active=STREAMS,
        rng=random.Random(1),
    )
    return trio.run(_figures, engine, prompts, systems, rounds)


async def _figures(
    engine: WorkerEngine, prompts: Sequence[str], systems: Sequence[str], rounds: int
) -> dict[str, float]:
    began = time.perf_counter()
    async with engine.running():
        await engine.wait_ready()
        ready_s = time.perf_counter() - began
        process = psutil.Process(engine.worker_pid)
        await _together(engine, prompts[:STREAMS])  # warm-up
        rates: list[tuple[float, float]] = []
        most_bytes = 0
        for number in range(1, rounds + 1):
            with _clocks(process) as clocks:
                asked = prompts[number * STREAMS : (number + 1) * STREAMS]
                count, memory = await _together(engine, asked, process)
            most_bytes = max(most_bytes, memory)
            rates.append((count / clocks[0], count / clocks[1]))
        anew_ms, again_ms = await _known_beginnings(engine, systems)
        return {
            "worker_start_s": ready_s,
            "worker_rss_mb": most_bytes / 2**20,
            "worker_streams32_tokens_per_s": statistics.median(wall for wall, _ in rates),
            "worker_streams32_tokens_per_cpu_s": statistics.median(cpu for _, cpu in rates),
            "prefix_anew_ttft_ms": anew_ms,
            "prefix_again_ttft_ms": again_ms,
            "prefix_cache_ttft_speedup": anew_ms / again_ms,
        }


async def _together(
    engine: WorkerEngine, prompts: Sequence[str], process: psutil.Process | None = None
) -> tuple[int, int]:
    """(tokens written, most bytes that the worker had) while all prompts are answered at once."""
    counted = most_bytes = 0

    async def ask(number: int, prompt: str) -> None:
        nonlocal counted
        sampling = Sampling(seed=number, max_tokens=ANSWER_TOKENS, min_tokens=ANSWER_TOKENS)
        async with engine.generate(EngineRequest((Message(role="user", content=prompt),), sampling)) as stream:
            async for event in stream:
                counted += len(event.token_ids) if isinstance(event, Piece) else 0

    async def look() -> None:
        nonlocal most_bytes
        while process is not None:
            most_bytes = max(most_bytes, process.memory_info().rss)
            await trio.sleep(LOOK_S)

    async with trio.open_nursery() as looking:
        looking.start_soon(look)
        async with trio.open_nursery() as nursery:
            for number, prompt in enumerate(prompts):
                nursery.start_soon(ask, number, prompt)
        looking.cancel_scope.cancel()
    return counted, most_bytes


async def _known_beginnings(engine: WorkerEngine, systems: Sequence[str]) -> tuple[float, float]:
    """Median milliseconds to the first token after a system prompt that is new, and after the same again."""
    times: dict[str, list[float]] = {"anew": [], "again": []}
    for system in systems:
        for kind, seen in times.items():
            messages = (Message(role="system", content=system), Message(role="user", content=f"And {kind}, please?"))
            began = time.perf_counter()
            async with engine.generate(EngineRequest(messages, Sampling(seed=1, max_tokens=1))) as stream:
                async for event in stream:
                    if isinstance(event, Piece):
                        seen.append((time.perf_counter() - began) * 1000)
                        break
    return statistics.median(times["anew"]), statistics.median(times["again"])


@contextmanager
def _clocks(process: psutil.Process) -> Iterator[list[float]]:
    """Wall and CPU seconds of the block, as a list that is filled at its end."""
    clocks: list[float] = []
    wall, cpu = time.perf_counter(), sum(process.cpu_times()[:2])
    yield clocks
    clocks += [time.perf_counter() - wall, sum(process.cpu_times()[:2]) - cpu]
