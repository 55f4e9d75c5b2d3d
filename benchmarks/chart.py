"""Draws rates as bars: `python -m benchmarks worker peer --json > FILE && python -m benchmarks.chart FILE > CHART.svg`.

Each bar is the median of a case's rate divided by that of `worker` in the same round: rates of different machines, or
of one machine at different hours, compare so and not otherwise.
"""

import json
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.cases import CASES
from benchmarks.peer_cases import PEERS
from streamlib.bench.figures import Round, number, ratio

FIGURE, BASE = "events_per_s", "worker"
OURS = {
    "worker": "streamlib: async handler",
    "worker_sync": "streamlib: sync handler",
    "worker_batch": "streamlib: batch handler",
    "raw_claimed": "by hand: batches claimed and settled by scripts",
    "loop": "by hand: SET NX, handler, XACK, one by one",
}
WIDTH, LABEL, BAR, GAP, TOP = 860, 330, 16, 8, 44


def main(file: str) -> None:
    told: dict[str, Any] = json.loads(Path(file).read_text())
    print(svg(bars(told["rounds"]), caption(told["about"], told["rounds"])))


def bars(rounds: Sequence[Round]) -> list[tuple[str, float, bool]]:
    """Label, rate in relation to the worker's, whether it is one of ours; the fastest first."""
    handling = {f"peer_{peer.name}": peer.about for peer in PEERS.values() if not peer.publishes}
    labels = {name: label for name, label in (OURS | handling).items() if name in CASES or name in handling}
    found = [(label, ratio(rounds, name, BASE, FIGURE), name.startswith("worker")) for name, label in labels.items()]
    return sorted([(label, spread.median, ours) for label, spread, ours in found if spread], key=lambda one: -one[1])


def caption(about: dict[str, Any], rounds: Sequence[Round]) -> str:
    """What the chart shows, and where and when it was measured."""
    rate = number(median(found[BASE][FIGURE] for found in rounds))
    measured = f"{about['date'][:10]}, {about['cores']} cores, {about['cpu']}"
    return f"Events per second of one worker process; 1 is streamlib's async handler, {rate}/s on {measured}"


def svg(rows: Sequence[tuple[str, float, bool]], title: str) -> str:
    """The chart. Every bar begins at zero, and all have one scale."""
    most = max(value for _, value, _ in rows)
    height = TOP + len(rows) * (BAR + GAP) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
        '  font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="8" y="24" font-size="13" fill="#222222">{escape(title)}</text>',
    ]
    for place, (label, value, ours) in enumerate(rows):
        y, length = TOP + place * (BAR + GAP), max(value / most * (WIDTH - LABEL - 70), 1)
        fill = "#b3362b" if ours else "#8a8f98"
        lines += [
            f'<text x="{LABEL - 8}" y="{y + 12}" text-anchor="end" fill="#222222">{escape(label)}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{length:.0f}" height="{BAR}" fill="{fill}"/>',
            f'<text x="{LABEL + length + 6:.0f}" y="{y + 12}" fill="#222222">{value:.2f}</text>',
        ]
    return "\n".join([*lines, "</svg>"])


if __name__ == "__main__":
    main(sys.argv[1])
