"""Flight records: every row of the real file becomes the right events; what is no record is refused."""

import csv
import gzip
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from streamlib import Reject
from workers.flights.events import FlightArrived, FlightCancelled, FlightDeparted, arrival_delay_min
from workers.flights.recompute import recompute
from workers.flights.records import DATA_FILE, RecordError, events_of, read_events

ROW = {
    "year": "2013", "month": "1", "day": "1", "dep_time": "517", "sched_dep_time": "515", "dep_delay": "2",
    "arr_time": "830", "sched_arr_time": "819", "arr_delay": "11", "carrier": "UA", "flight": "1545",
    "tailnum": "N14228", "origin": "EWR", "dest": "IAH", "air_time": "227", "distance": "1400", "hour": "5",
    "minute": "15", "time_hour": "2013-01-01T10:00:00Z",
}  # fmt: skip
CANCELLED = dict.fromkeys(("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "tailnum"), "NA")


def test_a_flight_that_arrived_is_two_events_in_order() -> None:
    (first_id, departed), (second_id, arrived) = events_of(ROW)
    assert (first_id, second_id) == ("2013-01-01-UA-1545-EWR:departed", "2013-01-01-UA-1545-EWR:arrived")
    assert departed.flight == arrived.flight == "UA1545"
    assert isinstance(departed, FlightDeparted)
    assert (departed.departure_delay_min, departed.tail_number) == (2, "N14228")
    assert departed.scheduled_at.isoformat() == "2013-01-01T10:15:00+00:00"
    assert isinstance(arrived, FlightArrived)
    assert (arrived.arrival_time, arrived.arrival_delay_min, arrived.air_time_min) == ("08:30", 11, 227)


def test_a_flight_without_departure_time_was_cancelled_and_may_lack_an_aircraft() -> None:
    ((event_id, event),) = events_of(ROW | CANCELLED)
    assert event_id == "2013-01-01-UA-1545-EWR:cancelled"
    assert isinstance(event, FlightCancelled)
    assert event.tail_number is None


def test_a_flight_without_arrival_time_only_departed() -> None:
    events = events_of(ROW | {"arr_time": "NA", "arr_delay": "NA", "air_time": "NA"})
    assert [type(event) for _, event in events] == [FlightDeparted]


def test_an_arrival_without_delay_is_an_event_that_is_rejected_with_a_plain_reason() -> None:
    _, (_, event) = events_of(ROW | {"arr_delay": "NA", "air_time": "NA"})
    assert isinstance(event, FlightArrived)
    with pytest.raises(Reject, match=r"IAH: arrived at 08:30, but the record has no arrival delay and no air time$"):
        arrival_delay_min(event)


def test_2400_is_the_midnight_that_ends_the_day() -> None:
    _, (_, event) = events_of(ROW | {"arr_time": "2400"})
    assert isinstance(event, FlightArrived)
    assert event.arrival_time == "24:00"


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("carrier", "NA", "carrier is 'NA'"),
        ("carrier", "", "carrier is ''"),
        ("dep_delay", "NA", "dep_delay is 'NA'"),
        ("distance", "far", "distance is 'far', not a whole number"),
        ("arr_time", "1260", "arr_time is '1260', no time of day"),
        ("arr_time", "2401", "no time of day"),
        ("arr_time", "-5", "no time of day"),
        ("time_hour", "yesterday", "time_hour is 'yesterday'"),
        ("time_hour", "2013-01-01T10:00:00", "not in UTC"),
    ],
)
def test_what_is_no_record_is_refused_by_column(column: str, value: str, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        events_of(ROW | {column: value})


def test_a_broken_file_names_its_row(tmp_path: Path) -> None:
    broken = tmp_path / "broken.csv.gz"
    with gzip.open(broken, "wt", newline="") as lines:
        writer = csv.DictWriter(lines, ROW)
        writer.writeheader()
        writer.writerows([ROW, ROW | {"flight": "?"}])
    with pytest.raises(RecordError, match=r"broken\.csv\.gz, row 2: flight is '\?'"):
        list(read_events(broken))
    with gzip.open(broken, "wt") as lines:
        lines.write("year,month\n2013,1\n")
    with pytest.raises(RecordError, match="row 1"):
        list(read_events(broken))


def test_the_real_file_gives_every_event_an_id_of_its_own() -> None:
    events = list(read_events())
    assert len({event_id for event_id, _ in events}) == len(events) == 53_472
    kinds = Counter(type(event) for _, event in events)
    assert kinds == {FlightDeparted: 26_483, FlightArrived: 26_468, FlightCancelled: 521}
    incomplete = [e for _, e in events if isinstance(e, FlightArrived) and e.arrival_delay_min is None]
    assert len(incomplete) == 70
    assert all(event.air_time_min is None for event in incomplete)


def test_reading_again_gives_the_same_events() -> None:
    assert list(read_events(limit=1_000)) == list(read_events(limit=1_000))


def test_recomputation_counts_what_is_in_the_file() -> None:
    facts = recompute(DATA_FILE)
    assert facts.events == 53_472
    assert facts.handled == {
        "delays": 52_881,
        "alerts": 26_398,
        "flights-by-origin": 53_472,
        "flights-by-carrier": 53_472,
        "airport-board": 27_004,
        "carrier-board": 53_402,
    }
    assert {group: len(ids) for group, ids in facts.dead.items()} == {
        "delays": 70, "alerts": 70, "airport-board": 0, "carrier-board": 70,
        "flights-by-origin": 0, "flights-by-carrier": 0,
    }  # fmt: skip
    assert facts.delays["OO"] == (1, 67, 1, 107)
    assert len(facts.late) == 1_862
    assert facts.airports["JFK"]["worst_flight"] == "2013-01-09-HA-51-JFK"
    assert facts.airports["EWR"]["average_delay_min"] == Decimal("14.91")


@pytest.mark.parametrize("limit", [1, 2, 999, 5_000])
def test_recomputation_of_a_part_stops_at_the_same_event(limit: int) -> None:
    facts = recompute(DATA_FILE, limit)
    incomplete = len(facts.dead["carrier-board"])
    assert facts.events == limit == len(list(read_events(limit=limit)))
    assert facts.handled["carrier-board"] + incomplete == limit
