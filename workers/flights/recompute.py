"""The same facts straight from the file, in plain Python: what the workers' results are compared with.

Nothing here is shared with the events or handlers, so that a mistake there cannot hide here.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from msgspec import Struct, field

LATE_MIN = 60


class Facts(Struct, kw_only=True):
    """What a right run must end with. Boards are dicts, field by field as their rows; delays in minutes."""

    events: int = 0
    handled: dict[str, int] = field(default_factory=dict)
    """group -> events it must have handled well"""
    dead: dict[str, set[str]] = field(default_factory=dict)
    """group -> event ids that must be its dead letters"""
    delays: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)
    """carrier -> departures, sum of departure delays, arrivals, sum of arrival delays"""
    late: dict[str, int] = field(default_factory=dict)
    """flight id -> arrival delay, of flights that came more than an hour late"""
    airports: dict[str, dict[str, Any]] = field(default_factory=dict)
    carriers: dict[str, dict[str, Any]] = field(default_factory=dict)


def recompute(path: Path, limit: int | None = None) -> Facts:
    """The facts of the first `limit` events of the file (of all when None)."""
    facts = Facts()
    seen = {"departed": 0, "cancelled": 0, "arrived": 0}
    incomplete: set[str] = set()
    for flight, kind, row in _happenings(path):
        if facts.events == limit:
            break
        facts.events += 1
        if kind == "arrived" and row["arr_delay"] == "NA":
            incomplete.add(f"{flight}:arrived")
            continue
        seen[kind] += 1
        _count(facts, flight, kind, row)
    facts.handled = {
        "delays": seen["departed"] + seen["arrived"],
        "alerts": seen["arrived"],
        "airport-board": seen["departed"] + seen["cancelled"],
        "flights-by-origin": facts.events,
        "flights-by-carrier": facts.events,
        "carrier-board": sum(seen.values()),
    }
    rejects = ("delays", "alerts", "carrier-board")
    facts.dead = {name: set(incomplete) if name in rejects else set() for name in facts.handled}
    _finish(facts)
    return facts


def _happenings(path: Path) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    with gzip.open(path, "rt") as lines:
        for row in csv.DictReader(lines):
            day = f"{row['year']}-{row['month']:0>2}-{row['day']:0>2}"
            flight = f"{day}-{row['carrier']}-{row['flight']}-{row['origin']}"
            if row["dep_time"] == "NA":
                yield flight, "cancelled", row
                continue
            yield flight, "departed", row
            if row["arr_time"] != "NA":
                yield flight, "arrived", row


def _count(facts: Facts, flight: str, kind: str, row: Mapping[str, str]) -> None:
    delays = facts.delays.setdefault(row["carrier"], (0, 0, 0, 0))
    airport = facts.airports.setdefault(row["origin"], {"departures": 0, "cancelled": 0, "sum": 0, "worst": None})
    carrier = facts.carriers.setdefault(
        row["carrier"], {"departures": 0, "arrivals": 0, "cancelled": 0, "sum": 0, "worst": None}
    )
    if kind == "cancelled":
        airport["cancelled"] += 1
        carrier["cancelled"] += 1
    elif kind == "departed":
        delay = int(row["dep_delay"])
        facts.delays[row["carrier"]] = (delays[0] + 1, delays[1] + delay, delays[2], delays[3])
        carrier["departures"] += 1
        airport["departures"] += 1
        _add(airport, flight, delay)
    else:
        delay = int(row["arr_delay"])
        facts.delays[row["carrier"]] = (delays[0], delays[1], delays[2] + 1, delays[3] + delay)
        carrier["arrivals"] += 1
        _add(carrier, flight, delay)
        if delay > LATE_MIN:
            facts.late[flight] = delay


def _add(board: dict[str, Any], flight: str, delay: int) -> None:
    board["sum"] += delay
    if board["worst"] is None or (-delay, flight) < (-board["worst"][0], board["worst"][1]):
        board["worst"] = (delay, flight)


def _finish(facts: Facts) -> None:
    """Turn running sums into the columns that the boards show."""
    facts.delays = {carrier: sums for carrier, sums in facts.delays.items() if sums[0] or sums[2]}
    for board, counted in ((facts.airports, "departures"), (facts.carriers, "arrivals")):
        for row in board.values():
            total, worst = row.pop("sum"), row.pop("worst")
            row["delay_sum_min"] = total
            row["worst_delay_min"], row["worst_flight"] = worst if worst else (None, None)
            average = Fraction(total, row[counted]) if row[counted] else Fraction(0)
            row["average_delay_min"] = Decimal(round(average * 100)).scaleb(-2)
    for row in facts.carriers.values():
        mean = row["delay_sum_min"] / row["arrivals"] if row["arrivals"] else None
        row["punctuality"] = "unknown" if mean is None else "early" if mean < 0 else "late" if mean >= 15 else "on-time"
