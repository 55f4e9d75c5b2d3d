"""Compares what the workers made of the events with the same facts computed straight from the file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from streamlib import App
from streamlib.keys import StreamKeys
from streamlib.ops.dead_letters import DeadLetters, Filters
from streamlib.producer import Topic
from workers.flights.app import airport_board, by_carrier, by_origin, carrier_board, flights
from workers.flights.recompute import Facts, recompute
from workers.flights.store import EffectStore

HANDLER_GROUPS = ("delays", "alerts")
COPIES = {"airport-board": by_origin.name, "carrier-board": by_carrier.name}
"""The topic that a board reads; it is filled by a group of the same name on `flights`."""
TOPICS = (flights, by_origin, by_carrier)
_TOPIC_OF = dict.fromkeys((*HANDLER_GROUPS, *COPIES.values()), flights) | {
    airport_board.name: by_origin,
    carrier_board.name: by_carrier,
}

_SCAN_COUNT = 5_000
_FAR_MIN = 10**6


class Verdict(Struct, kw_only=True):
    """What was found, and every way in which it differs from the facts (none: verified)."""

    groups: dict[str, int]
    dead: int
    dead_reason: str
    repeats: int
    airports: list[dict[str, Any]]
    carriers: list[dict[str, Any]]
    mismatches: list[str]


async def verify(app: App, store: EffectStore, data: Path, limit: int | None) -> Verdict:
    """Compare counts, dead letters, effects and boards with the facts of the file; `app` must be open."""
    facts = recompute(data, limit)
    differ = _Differences()
    handled = {group: await _done(app, group) for group in _TOPIC_OF}
    for group, count in handled.items():
        differ.check(f"events that {group} handled", facts.handled[group], count)
    dead, reason = await _dead(app)
    for group in _TOPIC_OF:
        differ.check(f"dead letters of {group}", facts.dead[group], dead.get(group, set()))
    differ.check("events in the statistics", facts.handled["delays"], store.counted())
    differ.check_rows("statistics of", facts.delays, store.carrier_delays())
    differ.check("number of notices", len(facts.late), len(store.notices()))
    differ.check_rows("notice for", facts.late, dict(store.notices()))
    airports = {row.origin: _shown(row) for row in await airport_board.get_many(list(facts.airports)) if row}
    carriers = {row.carrier: _shown(row) for row in await carrier_board.get_many(list(facts.carriers)) if row}
    differ.check_rows("airport-board row", facts.airports, airports, ignoring="origin")
    differ.check_rows("carrier-board row", facts.carriers, carriers, ignoring="carrier")
    await _check_indexes(facts, differ)
    return Verdict(
        groups=handled,
        dead=sum(len(ids) for ids in dead.values()),
        dead_reason=reason,
        repeats=sum(store.repeats().values()),
        airports=sorted(airports.values(), key=lambda row: -row["departures"]),
        carriers=sorted(carriers.values(), key=lambda row: -row["departures"]),
        mismatches=differ.found,
    )


def any_partition(app: App, topic: Topic) -> StreamKeys:
    """Key names with a glob that stands for each partition of a topic that has several."""
    return app.keys.stream(f"{topic.name}.*", 0, 1)


async def _done(app: App, group: str) -> int:
    """How many events Redis has marked as done for a group: one mark per event, however often it ran."""
    keys, done = any_partition(app, _TOPIC_OF[group]), 0
    async for names in _named(app, keys.idem(group, "*")):
        done += (await app.redis.execute("MGET", *names)).count(b"d")
    async for names in _named(app, keys.mark_set(group, "*", "*")):  # the compact store
        done += sum([await app.redis.execute("SCARD", name) for name in names])
    return done


async def _named(app: App, pattern: str) -> AsyncIterator[list[bytes]]:
    cursor = b"0"
    while True:
        cursor, names = await app.redis.execute("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)
        if names:
            yield names
        if cursor == b"0":
            return


async def _dead(app: App) -> tuple[dict[str, set[str]], str]:
    """Event ids of the dead letters of each group, and the first one's error as an example. A copy has an id of its
    own; its correlation id is the id of the event."""
    letters = DeadLetters(app.redis, app.keys, window_s=app.settings.idempotency.window_s)
    found: dict[str, set[str]] = {}
    example = ""
    for topic in TOPICS:
        async for letter in letters.find(Filters(topic=topic.name)):
            message = letter.message
            event_id = message.correlation_id if message is not None else None
            found.setdefault(letter.place.group, set()).add(event_id or letter.event_id)
            example = example or letter.letter.error
    return found, example


async def _check_indexes(facts: Facts, differ: _Differences) -> None:
    """Every way to look something up finds what the file says."""
    for value in ("early", "on-time", "late", "unknown"):
        wanted = {name for name, row in facts.carriers.items() if row["punctuality"] == value}
        found = await carrier_board.find(punctuality=value)
        differ.check(f"carriers that are {value}", wanted, {row.carrier for row in found})
    cancelled = await carrier_board.between("cancelled", 1, _FAR_MIN)
    wanted = {name for name, row in facts.carriers.items() if row["cancelled"]}
    differ.check("carriers with cancellations", wanted, {row.carrier for row in cancelled})
    slowest = await airport_board.between("average_delay_min", -_FAR_MIN, _FAR_MIN)
    by_delay = sorted(row["average_delay_min"] for row in facts.airports.values())
    differ.check("airports by average delay", by_delay, [row.average_delay_min for row in slowest])
    united = await carrier_board.prefix("carrier", "U")
    wanted = {name for name in facts.carriers if name.startswith("U")}
    differ.check("carriers whose code begins with U", wanted, {row.carrier for row in united})


def _shown(row: Struct) -> dict[str, Any]:
    return asdict(row)


class _Differences:
    """Gathers what is not as it should be, in words."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def check(self, what: str, wanted: Any, found: Any) -> None:
        if wanted == found:
            return
        if isinstance(wanted, set):
            missing, extra = sorted(wanted - found), sorted(found - wanted)
            self.found.append(f"{what}: {len(missing)} missing {missing[:3]}, {len(extra)} too many {extra[:3]}")
        else:
            self.found.append(f"{what}: {found}, the file says {wanted}")

    def check_rows(self, what: str, wanted: Mapping[str, Any], found: Mapping[str, Any], *, ignoring: str = "") -> None:
        """Compare two tables row by row; `ignoring` is the column that repeats the row's name."""
        for name in sorted(wanted.keys() | found.keys()):
            has = found.get(name)
            if isinstance(has, dict):
                has = {column: value for column, value in has.items() if column != ignoring}
            self.check(f"{what} {name}", wanted.get(name), has)
