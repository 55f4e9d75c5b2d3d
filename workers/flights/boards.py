"""The rows of the two boards: what they show, and how a delay changes them."""

from __future__ import annotations

from decimal import Decimal

from streamlib import ReadModel

LATE_FROM_MIN = 15
"""A mean arrival delay from here on counts as late, as the United States' statistics have it."""

_CENT = Decimal("0.01")


class AirportRow(ReadModel):
    """One origin airport: departures, their delays in minutes, cancellations."""

    origin: str
    departures: int = 0
    cancelled: int = 0
    delay_sum_min: int = 0
    average_delay_min: Decimal = Decimal(0)
    worst_delay_min: int | None = None
    worst_flight: str | None = None


class CarrierRow(ReadModel):
    """One carrier: flights, arrival delays in minutes, cancellations."""

    carrier: str
    departures: int = 0
    arrivals: int = 0
    cancelled: int = 0
    delay_sum_min: int = 0
    average_delay_min: Decimal = Decimal(0)
    worst_delay_min: int | None = None
    worst_flight: str | None = None
    punctuality: str = "unknown"


def average(sum_min: int, count: int) -> Decimal:
    """The mean in minutes to two places, exact: sums are whole numbers."""
    return (Decimal(sum_min) / count).quantize(_CENT)


def punctuality(sum_min: int, count: int) -> str:
    """ "early", "on-time" or "late", by the mean arrival delay."""
    if sum_min < 0:
        return "early"
    return "late" if sum_min >= LATE_FROM_MIN * count else "on-time"


def worse(worst_min: int | None, worst_flight: str | None, delay_min: int, flight_id: str) -> tuple[int, str | None]:
    """The larger delay with its flight; of equal ones the first by name. Which came first does not count: flights of
    one airport come from several partitions, in any order."""
    if worst_min is None or worst_flight is None:
        return delay_min, flight_id
    return min((worst_min, worst_flight), (delay_min, flight_id), key=lambda one: (-one[0], one[1]))
