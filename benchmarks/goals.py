"""What engine, server and agreement are to reach on two cores with the default model, and whether a run did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Goal:
    """A bound for a figure, and a further one that is hoped for."""

    least: float | None = None
    most: float | None = None
    hoped: float | None = None

    def met(self, value: float | None) -> bool | None:
        """Whether the figure keeps the bound; None without a figure."""
        if value is None:
            return None
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


ENGINE: Final = {
    "single_stream_vs_llamacpp_q8": Goal(least=1.0),
    "single_stream_vs_llamacpp_best": Goal(hoped=1.0),
    "streams32_vs_llamacpp_best": Goal(least=1.5, hoped=2.2),
    "streams64_vs_llamacpp_best": Goal(least=1.8, hoped=2.5),
    "streams32_vs_generate_batch": Goal(least=12.0),
    "prefill_vs_llamacpp_best": Goal(least=1.5, hoped=2.5),
    "prefix_cache_ttft_speedup": Goal(least=5.0),
    "perplexity_int8_over_bf16": Goal(most=1.01),
    "worker_rss_mb": Goal(most=1200.0),
}
SERVING: Final = {
    "completed_rps": Goal(least=19.8, hoped=30.0),  # of 20 that are offered: the last ones end after the load does
    "failed": Goal(most=0.0),
    "itl_p95_ms": Goal(most=80.0),
    "ttft_p95_ms": Goal(most=1000.0),
}
CONSENSUS: Final = {
    "n4.p50_ms": Goal(most=60.0),
    "n4.p99_ms": Goal(most=250.0),
    "n4.decisions_per_s": Goal(least=20.0),
    "n4.scores_per_s": Goal(least=1000.0),
    "real_answers_scored_per_s": Goal(least=4.0),
    "real_certificate_p50_ms": Goal(most=3000.0),
}
DHT: Final = {
    "hivemind_get_vs_remote_hit": Goal(least=1.0, hoped=2.0),
    "kad_get_vs_remote_hit": Goal(least=5.0),
    "kad_get_cpu_vs_remote_hit": Goal(least=10.0),
    "messages_growth_vs_log": Goal(most=1.0),
}
CACHE: Final = {
    "wrong_hit_upper95": Goal(most=0.02),
    "true_hit_share_of_fixed": Goal(least=0.8),
    "exact_p99_ms": Goal(most=1.0),
    "semantic_p99_ms": Goal(most=5.0),
    "miss_added_ttft_p95_ms": Goal(most=15.0),
    "exact_hits_per_s": Goal(least=500.0),
    "hijack_rate": Goal(most=0.01),
    "fluent_hijack_vs_undefended": Goal(most=0.5),
}


def judged(goals: Mapping[str, Goal], figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a goal: the figure, its bound, and whether it was met."""
    rows = []
    for name, goal in goals.items():
        value = figures[name]
        bound = f"at least {goal.least:g}" if goal.least is not None else None
        bound = f"at most {goal.most:g}" if goal.most is not None else bound
        words = [bound, f"hoped for {goal.hoped:g}" if goal.hoped is not None else None]
        met = goal.met(value) if bound is not None else None
        rows.append({"figure": name, "value": value, "goal": ", ".join(word for word in words if word), "met": met})
    return rows
