"""Reads the file of flight records: what each column must be, and which events a row stands for.

| column | what it is | when it is `NA` |
|---|---|---|
| `year month day carrier flight origin` | fact, together the flight's id | the file is broken |
| `dest distance time_hour minute` | fact; the last two are the schedule | the file is broken |
| `dep_time` | decides the event | the flight was cancelled (521 rows) |
| `dep_delay` | fact of a departure, minutes | the file is broken |
| `arr_time` | decides the event; 2400 is midnight (11 rows) | it left and never arrived (15 rows) |
| `arr_delay air_time` | fact of an arrival, minutes | an incomplete arrival (70 rows), see below |
| `tailnum` | optional | no aircraft was assigned (155 rows, all cancelled) |

An incomplete arrival is published as it is; each group that handles it rejects it, with that reason.
`sched_dep_time sched_arr_time hour` tell nothing more and are not read.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path

from workers.flights.events import FlightArrived, FlightCancelled, FlightDeparted, FlightEvent

DATA_FILE = Path(__file__).parent / "data" / "flights-2013-01.csv.gz"
_MISSING = "NA"


class RecordError(ValueError):
    """A row that is no flight record at all: a column is absent or holds something else than it should."""


def read_events(path: Path = DATA_FILE, limit: int | None = None) -> Iterator[tuple[str, FlightEvent]]:
    """The events of a file in its order, each with its event id: the same file always gives the same ids.

    At most `limit` events. Raises RecordError, which names the row, and OSError.
    """
    return islice(_all_events(path), limit)


def events_of(row: Mapping[str, str]) -> list[tuple[str, FlightEvent]]:
    """The events that one row stands for, with their ids. Raises RecordError."""
    flight_id = flight_id_of(row)
    carrier, origin, destination = _text(row, "carrier"), _text(row, "origin"), _text(row, "dest")
    flight = f"{carrier}{_whole(row, 'flight')}"
    if row["dep_time"] == _MISSING:
        cancelled = FlightCancelled(
            flight_id=flight_id, flight=flight, carrier=carrier, origin=origin, destination=destination,
            tail_number=_optional(row, "tailnum"), scheduled_at=_scheduled_at(row),
        )  # fmt: skip
        return [(f"{flight_id}:cancelled", cancelled)]
    departed = FlightDeparted(
        flight_id=flight_id, flight=flight, carrier=carrier, origin=origin, destination=destination,
        tail_number=_optional(row, "tailnum"), scheduled_at=_scheduled_at(row),
        departure_delay_min=_whole(row, "dep_delay"),
    )  # fmt: skip
    if row["arr_time"] == _MISSING:
        return [(f"{flight_id}:departed", departed)]
    arrived = FlightArrived(
        flight_id=flight_id, flight=flight, carrier=carrier, origin=origin, destination=destination,
        arrival_time=_clock(row, "arr_time"), arrival_delay_min=_optional_whole(row, "arr_delay"),
        air_time_min=_optional_whole(row, "air_time"), distance_mi=_whole(row, "distance"),
    )  # fmt: skip
    return [(f"{flight_id}:departed", departed), (f"{flight_id}:arrived", arrived)]


def flight_id_of(row: Mapping[str, str]) -> str:
    """Day, carrier, flight number and origin: no airline uses a number twice there in a day."""
    year, month, day = _whole(row, "year"), _whole(row, "month"), _whole(row, "day")
    return f"{year}-{month:02}-{day:02}-{_text(row, 'carrier')}-{_whole(row, 'flight')}-{_text(row, 'origin')}"


def _all_events(path: Path) -> Iterator[tuple[str, FlightEvent]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), start=1):
            try:
                yield from events_of(row)
            except (KeyError, RecordError) as error:
                raise RecordError(f"{path.name}, row {number}: {error}") from error


def _scheduled_at(row: Mapping[str, str]) -> datetime:
    """`time_hour` is the full hour in UTC; New York's minutes are UTC's minutes."""
    text = _text(row, "time_hour")
    try:
        hour = datetime.fromisoformat(text)
    except ValueError as error:
        raise RecordError(f"time_hour is {text!r}, not a time like 2013-01-01T10:00:00Z") from error
    if hour.utcoffset() != timedelta(0):
        raise RecordError(f"time_hour is {text!r}, not in UTC")
    return hour + timedelta(minutes=_whole(row, "minute"))


def _clock(row: Mapping[str, str], column: str) -> str:
    """517 -> "05:17". Raises RecordError for what no clock shows."""
    hour, minute = divmod(_whole(row, column), 100)
    if not (0 <= hour < 24 and 0 <= minute < 60) and (hour, minute) != (24, 0):
        raise RecordError(f"{column} is {row[column]!r}, no time of day")
    return f"{hour:02}:{minute:02}"


def _text(row: Mapping[str, str], column: str) -> str:
    text = row[column]
    if not text or text == _MISSING:
        raise RecordError(f"{column} is {text!r}, but every record must have it")
    return text


def _whole(row: Mapping[str, str], column: str) -> int:
    text = _text(row, column)
    try:
        return int(text)
    except ValueError as error:
        raise RecordError(f"{column} is {text!r}, not a whole number") from error


def _optional(row: Mapping[str, str], column: str) -> str | None:
    return None if row[column] == _MISSING else _text(row, column)


def _optional_whole(row: Mapping[str, str], column: str) -> int | None:
    return None if row[column] == _MISSING else _whole(row, column)
