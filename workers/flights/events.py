"""What happens to a flight: the three events of the topic `flights`, and the rule for a complete arrival.

`flight_id` names one flight on one day; `flight` is carrier and number, the same every day ("UA1545").
"""

from __future__ import annotations

from datetime import datetime

from streamlib import Event, Reject


class FlightDeparted(Event):
    """A flight left its gate. A negative delay is an early departure."""

    flight_id: str
    flight: str
    carrier: str
    origin: str
    destination: str
    tail_number: str | None
    scheduled_at: datetime
    departure_delay_min: int


class FlightArrived(Event):
    """A flight reached a gate; `arrival_time` is the wall clock there ("24:00" ends the day).

    Some records have the time and nothing else. They are published as they are: whoever needs the delay asks
    `arrival_delay_min`.
    """

    flight_id: str
    flight: str
    carrier: str
    origin: str
    destination: str
    arrival_time: str
    arrival_delay_min: int | None
    air_time_min: int | None
    distance_mi: int


class FlightCancelled(Event):
    """A scheduled flight that never left."""

    flight_id: str
    flight: str
    carrier: str
    origin: str
    destination: str
    tail_number: str | None
    scheduled_at: datetime


FlightEvent = FlightDeparted | FlightArrived | FlightCancelled


def arrival_delay_min(event: FlightArrived) -> int:
    """The delay in minutes. Raises Reject for an arrival whose record lacks it: no retry can mend that."""
    if event.arrival_delay_min is not None:
        return event.arrival_delay_min
    missing = "arrival delay" if event.air_time_min is not None else "arrival delay and no air time"
    raise Reject(
        f"{event.flight_id} to {event.destination}: arrived at {event.arrival_time}, but the record has no {missing}"
    )
