"""The arithmetic: medians over rounds, and ratios between cases that ran in the same round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from msgspec import Struct

Figures = dict[str, float]
"""What one run measured, by name."""
Round = Mapping[str, Figures]
"""What one round measured, by case."""


class Spread(Struct, frozen=True):
    """Median, least and most of what the rounds gave."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


class Line(Struct, frozen=True):
    """One figure of one case, and the same in relation to its base (None where it has none, or the base measured 0)."""

    case: str
    figure: str
    value: Spread
    base: str = ""
    ratio: Spread | None = None


def lines(rounds: Sequence[Round], bases: Mapping[str, str]) -> list[Line]:
    """The table: for each case of `bases` (case -> base, "" for none), in its order, each figure it gave."""
    table = []
    for case, base in bases.items():
        ran = [found for found in rounds if case in found]
        for figure in dict.fromkeys(name for found in ran for name in found[case]):
            values = [found[case][figure] for found in ran if figure in found[case]]
            table.append(Line(case, figure, Spread.of(values), base, ratio(ran, case, base, figure)))
    return table


def ratio(rounds: Sequence[Round], case: str, base: str, figure: str) -> Spread | None:
    """A figure of the case divided by that of its base, round by round."""
    pairs = [
        (found[case][figure], found[base][figure])
        for found in rounds
        if figure in found.get(case, {}) and found.get(base, {}).get(figure)
    ]
    return Spread.of([mine / theirs for mine, theirs in pairs]) if pairs else None


def number(value: float) -> str:
    """Three or more digits that count."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least this part of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(-int(-part * len(ordered) // 1) - 1, 0)]
