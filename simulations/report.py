"""A run as one HTML file: heights over time, what was done to the network, messages by protocol. No scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Final

from nsllm.simulations.comparison import Comparison, measured
from nsllm.simulations.timeline import Timeline
from nsllm.simulations.trace import Trace

STAND_INS: Final = (
    ("network", "libp2p over TCP", "messages in this process, with seeded delays, cuts and crashes"),
    ("addresses and pointers", "Kademlia", "a table that everybody reads after the delay of a round trip"),
    ("announcements", "gossipsub, hop by hop", "told to everybody that live connections lead to, after one delay"),
    ("time", "the system's clocks", "a virtual clock that jumps to the next event"),
    ("chance", "the system's", "drawn from the seed"),
    ("blocking work", "threads", "in turn, in line"),
    ("databases", "SQLite files", "SQLite in memory; a kill keeps what was committed"),
    ("engine", "a language model in a worker process", "a stand-in that strings words together"),
    ("plugins", "a worker process", "the built-in ones, in line"),
    ("suspension", "SIGSTOP", "every link of the peer is cut, its clock goes on"),
    (
        "repeated work",
        "done by every peer",
        "once: results of pure functions (signatures, decoding, cards, settled bodies, EVM) are shared, by all inputs",
    ),
)
"""(what, in a real peer, in a simulated one)."""
WIDTH: Final = 900
HEIGHT: Final = 220
LEFT: Final = 60
PALETTE: Final = ("#4363d8", "#e6194b", "#3cb44b", "#f58231", "#911eb4", "#46b1c9", "#808000", "#a9a9a9", "#9a6324")
TICKS: Final = {
    "killed": "#c00",
    "stopped": "#e80",
    "suspended": "#e80",
    "started": "#080",
    "resumed": "#080",
}
"""Marks of a peer, and their colours."""
CURVES: Final = 32
"""Peers whose height is drawn; of more, every n-th."""
STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:980px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse}td,th{padding:2px 12px 2px 0;text-align:left;vertical-align:top}"
    "h2{font-size:1.1em;margin:1.6em 0 .4em}svg{width:100%;height:auto}"
    "svg text{font:11px system-ui,sans-serif;fill:#444}"
    ".key{display:inline-block;width:10px;height:10px;margin:0 4px 0 14px}code{word-break:break-all}"
)


def render(result: Mapping[str, str | int | float], trace: Trace) -> str:
    """The page of a simulated run."""
    end_s = max(float(result["virtual_s"]), 1.0)
    intro = (
        f"<p>{result['messages']} messages in {end_s:.0f} virtual seconds."
        f" The model is a {escape(str(result['model']))}.</p>"
    )
    rest = f"<h2>What stands in for what</h2>{_stand_ins()}<h2>Simulated and real peers</h2>{_comparison(measured())}"
    return _page("nsllm sim", result, trace, end_s, intro=intro, clock="virtual seconds", rest=rest)


def render_real(result: Mapping[str, str | int | float], timeline: Timeline) -> str:
    """The page of a run on real processes, also of one that failed."""
    end_s = max(float(result["seconds"]), 1.0)
    intro = (
        f"<p>Real processes on one machine, {end_s:.0f} seconds. Heights and message counts are the peers' own metrics,"
        " read every second from those that answered; what a peer counted last before it was killed is not in them.</p>"
    )
    return _page("nsllm devnet --scenario", result, timeline, end_s, intro=intro, clock="seconds", rest="")


def _page(
    command: str,
    result: Mapping[str, str | int | float],
    timeline: Timeline,
    end_s: float,
    *,
    intro: str,
    clock: str,
    rest: str,
) -> str:
    name = escape(str(result["scenario"]))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{command} {name}</title><style>{STYLE}</style>'
        f"<h1>{name}: {result['peers']} peers, seed {result['seed']}</h1>{intro}"
        f"<h2>Heights</h2>{_heights(timeline, end_s)}"
        f"<h2>Messages by protocol, every {timeline.bucket_s:.0f} {clock}</h2>{_messages(timeline, end_s)}"
        f"<h2>What was done to the network</h2>{_marks(timeline)}"
        f"<h2>Result</h2>{_table(result.items())}{rest}</html>"
    )


def _heights(timeline: Timeline, end_s: float) -> str:
    top = max((height for _, _, height in timeline.heights), default=0) or 1
    peers = sorted({peer for _, peer, _ in timeline.heights})
    shown = peers[:: max(1, -(-len(peers) // CURVES))]
    lines: list[str] = []
    for peer in shown:
        points = [f"{LEFT},{HEIGHT}"]
        last = 0
        for at_s, whose, height in timeline.heights:
            if whose == peer:
                points += [f"{_x(at_s, end_s):.1f},{_y(last, top):.1f}", f"{_x(at_s, end_s):.1f},{_y(height, top):.1f}"]
                last = height
        points.append(f"{_x(end_s, end_s):.1f},{_y(last, top):.1f}")
        colour = PALETTE[peer % len(PALETTE)]
        lines.append(
            f'<polyline fill="none" stroke="{colour}" stroke-opacity=".6" points="{" ".join(points)}">'
            f"<title>peer {peer}</title></polyline>"
        )
    note = (
        f"<p>{len(shown)} of {len(peers)} peers; grey: cut links, yellow: slow ones;"
        " ticks: a peer killed, stopped, suspended, started or resumed.</p>"
    )
    return f"{_frame(_bands(timeline, end_s) + ''.join(lines) + _ticks(timeline, end_s), end_s, top, 'height')}{note}"


def _messages(timeline: Timeline, end_s: float) -> str:
    names = [name for name, _ in timeline.by_protocol.most_common()]
    top = max((sum(counts.values()) for counts in timeline.over_time.values()), default=1)
    width = (WIDTH - LEFT) * timeline.bucket_s / end_s
    bars: list[str] = []
    for step, counts in sorted(timeline.over_time.items()):
        below = 0
        for order, name in enumerate(names):
            count = counts[name]
            if count:
                x, y = _x(step * timeline.bucket_s, end_s), _y(below + count, top)
                wide = max(0.5, min(width - 0.5, WIDTH - x))
                bars.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.2f}" height="{_y(below, top) - y:.2f}"'
                    f' fill="{PALETTE[order % len(PALETTE)]}"/>'
                )
                below += count
    key = "".join(
        f'<span class="key" style="background:{PALETTE[order % len(PALETTE)]}"></span>{escape(name)} '
        f"{timeline.by_protocol[name]}"
        for order, name in enumerate(names)
    )
    return f"{_frame(_bands(timeline, end_s) + ''.join(bars), end_s, top, 'messages')}<p>{key}</p>"


def _bands(timeline: Timeline, end_s: float) -> str:
    """The times during which links were cut, or slow."""
    bands: list[str] = []
    for begins, what, colour in (("slowed", "slow", "#fdf0d5"), ("parted", "cut", "#ddd")):
        since_s: float | None = None
        for mark in timeline.marks:
            if mark.what == begins and since_s is None:
                since_s = mark.at_s
            elif mark.what == "healed" and since_s is not None:
                bands.append(_band(since_s, mark.at_s, end_s, what, colour))
                since_s = None
        if since_s is not None:
            bands.append(_band(since_s, end_s, end_s, what, colour))
    return "".join(bands)


def _band(begin_s: float, until_s: float, end_s: float, what: str, colour: str) -> str:
    x = _x(begin_s, end_s)
    width = _x(until_s, end_s) - x
    return (
        f'<rect x="{x:.1f}" y="10" width="{width:.1f}" height="{HEIGHT - 10}" fill="{colour}">'
        f"<title>links {what} {begin_s:.1f} to {until_s:.1f} s</title></rect>"
    )


def _ticks(timeline: Timeline, end_s: float) -> str:
    return "".join(
        f'<line x1="{_x(mark.at_s, end_s):.1f}" x2="{_x(mark.at_s, end_s):.1f}" y1="{HEIGHT - 8}" y2="{HEIGHT}"'
        f' stroke="{TICKS[mark.what]}"><title>peer {mark.peers[0]} {mark.what} at {mark.at_s:.1f} s</title></line>'
        for mark in timeline.marks
        if mark.what in TICKS
    )


def _frame(inside: str, end_s: float, top: int, label: str) -> str:
    grid = "".join(
        f'<text x="{_x(at_s, end_s):.1f}" y="{HEIGHT + 16}" text-anchor="middle">{at_s:.0f} s</text>'
        for at_s in (end_s * part / 5 for part in range(6))
    )
    return (
        f'<svg viewBox="0 0 {WIDTH + 20} {HEIGHT + 24}" role="img" aria-label="{label} over time">{inside}'
        f'<line x1="{LEFT}" x2="{WIDTH}" y1="{HEIGHT}" y2="{HEIGHT}" stroke="#888"/>'
        f'<line x1="{LEFT}" x2="{LEFT}" y1="10" y2="{HEIGHT}" stroke="#888"/>'
        f'<text x="{LEFT - 6}" y="18" text-anchor="end">{top}</text>'
        f'<text x="{LEFT - 6}" y="{HEIGHT}" text-anchor="end">0</text>'
        f'<text x="{LEFT - 6}" y="{HEIGHT // 2}" text-anchor="end">{label}</text>{grid}</svg>'
    )


def _x(at_s: float, end_s: float) -> float:
    return LEFT + (WIDTH - LEFT) * at_s / end_s


def _y(value: float, top: int) -> float:
    return HEIGHT - (HEIGHT - 10) * value / top


def _marks(timeline: Timeline) -> str:
    if not timeline.marks:
        return "<p>Nothing.</p>"
    rows = (
        (f"{mark.at_s:.1f} s", f"{mark.what} {', '.join(map(str, mark.peers))}".strip())
        for mark in timeline.marks[:200]
    )
    more = f"<p>and {len(timeline.marks) - 200} more</p>" if len(timeline.marks) > 200 else ""
    return _table(rows) + more


def _stand_ins() -> str:
    head = "<tr><th></th><th>in a real peer</th><th>here</th></tr>"
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in STAND_INS)
    return f"<table>{head}{rows}</table>"


def _comparison(found: Comparison) -> str:
    """Message counts of another run, in which real peers were asked the same."""
    about = (
        f"<p>Not this run: {found.questions} questions to {found.peers} peers within {found.seconds:.0f} seconds,"
        f" once as processes over libp2p, once simulated, counted by the peers themselves. {escape(found.machine.cpu)},"
        f" {found.machine.cores} cores, {escape(found.machine.date)}.</p>"
    )
    head = "<tr><th>counted</th><th>real</th><th>simulated</th><th>ratio</th><th>for one block</th></tr>"
    rows = "".join(
        f"<tr><td>{escape(row.counted)}</td><td>{row.real}</td><td>{row.simulated}</td>"
        f"<td>{_ratio(row.ratio)}</td><td>{_ratio(row.per_block)}</td></tr>"
        for row in found.rows
    )
    return f"{about}<table>{head}{rows}</table>"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _table(rows: Iterable[tuple[str, object]]) -> str:
    cells = "".join(
        f"<tr><td>{escape(str(name))}</td><td><code>{escape(str(value))}</code></td></tr>" for name, value in rows
    )
    return f"<table>{cells}</table>"
