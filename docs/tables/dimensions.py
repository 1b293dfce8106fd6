"""What the last measurements of the score's dimensions found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tables.benchmarks import RESULTS
from tables.pieces import table


def computation_results() -> str:
    """Both errors of `computation`: honest answers that fail, and others that pass."""
    result = json.loads((RESULTS / "computation.json").read_text("utf-8"))
    machine = result["machine"]
    about = (
        f"{result['questions']} questions, answers of up to {result['max_tokens']} tokens; {machine['cpu']},"
        f" {machine['date']}. Rules `{result['rules'][:16]}`. Reading again takes {result['cpu_ms_a_token']} ms of one"
        " core a token of prompt and answer (the fast path in int8, on a machine with other work)."
    )
    honest = ("honest, written in", "read again in", "answers", "wrongly failed", "highest mean strain")
    others = (
        "dishonest",
        "temperature",
        "answers",
        "pass in other numbers",
        "in the very numbers",
        "median mean strain",
    )
    return "\n\n".join(
        [about, table(honest, map(_honest, result["honest"])), table(others, map(_other, result["dishonest"]))]
    )


def separation_results() -> str:
    """How well coherence and the hybrid score tell answers from spoilt ones."""
    result = json.loads((RESULTS / "separation.json").read_text("utf-8"))
    rows = [
        (kind, f"{result['auc_coherence'][kind]:.3f}", f"{auc:.3f}", f"{result['spoilt_reusable'][kind]:.0%}")
        for kind, auc in result["auc_hybrid"].items()
    ]
    about = (
        f"{result['answers']} of the default model's answers of up to {result['max_tokens']} tokens:"
        f" {result['published']:.0%} published, {result['reusable']:.0%} reusable, {result['withheld']:.0%} withheld."
    )
    return about + "\n\n" + table(("spoilt", "AUC coherence", "AUC hybrid score", "still reusable"), rows)


def support_results() -> str:
    """How well support tells evidence that an answer rests on from other evidence."""
    result = json.loads((RESULTS / "support.json").read_text("utf-8"))
    aucs = result["auc"]["feature"]
    rows = [
        (
            kind,
            f"{result['median'][kind]:.2f}",
            f"{aucs[kind]:.3f}" if kind in aucs else "-",
            f"{score:.2f}",
        )
        for kind, score in result["mean_score"].items()
    ]
    about = f"{result['answers']} of the default model's answers of up to {result['max_tokens']} tokens."
    return about + "\n\n" + table(("answer and evidence", "median cosine", "AUC", "mean score"), rows)


def _honest(row: Mapping[str, Any]) -> tuple[str, ...]:
    failed = row["answers"] - row["passed"]
    return row["written"], row["read"], str(row["answers"]), str(failed), f"{row['mean_strain'][-1]:.3f}"


def _other(row: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (str(row[key]) for key in ("answers", "passed", "passed_exact"))
    return row["kind"], row["temperature"], *counts, f"{row['mean_strain'][2]:.3f}" if row["mean_strain"] else "-"
