"""The flights app: a topic of four partitions, two groups with effects outside Redis, two boards inside it.

The topic is keyed by carrier and flight number, the boards are kept by airport and by carrier: each reads a copy of the
topic under the key of its own rows.

`streamlib run workers.flights.app:app`; FLIGHTS_DB names the SQLite file (flights.sqlite3 when unset).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from streamlib import App, BatchContext, Context, Exact, Ordered, Prefix, Reject
from workers.flights.boards import AirportRow, CarrierRow, average, punctuality, worse
from workers.flights.events import FlightArrived, FlightCancelled, FlightDeparted, arrival_delay_min
from workers.flights.store import Delay, EffectStore

DATABASE_ENV = "FLIGHTS_DB"
ALERT_FROM_MIN = 60

app = App("flights")

# A file published twice within the hour changes nothing: its event ids are the same.
flights = app.topic(
    "flights", FlightDeparted, FlightArrived, FlightCancelled, key="flight", partitions=4, dedup_window_s=3600
)
by_origin = app.rekey(flights, key="origin", to="flights-by-origin")
by_carrier = app.rekey(flights, key="carrier", to="flights-by-carrier")


@app.lifespan
async def resources(app: App) -> AsyncIterator[dict[str, Any]]:
    """The store of the effects, one per process."""
    store = EffectStore(Path(os.environ.get(DATABASE_ENV, "flights.sqlite3")))
    try:
        yield {"store": store}
    finally:
        store.close()


@app.handler(flights, group="delays")
def count_delays(events: list[FlightDeparted | FlightArrived], ctx: BatchContext) -> None:
    """Add the delays of a batch to the statistics, in one transaction."""
    delays = []
    for event in events:
        arrived = isinstance(event, FlightArrived)
        try:
            delay = arrival_delay_min(event) if isinstance(event, FlightArrived) else event.departure_delay_min
        except Reject as error:
            ctx.reject(event, str(error))
            continue
        delays.append(Delay(ctx.of(event).idempotency_key, event.carrier, arrived, delay))
    ctx.state["store"].count_delays(delays)


@app.handler(flights, group="alerts")
async def notify_late(event: FlightArrived, ctx: Context) -> None:
    """Tell about a flight that came more than an hour late; once, whatever happens to workers."""
    delay = arrival_delay_min(event)
    if delay > ALERT_FROM_MIN:
        notify = ctx.state["store"].notify
        await asyncio.to_thread(notify, ctx.idempotency_key, event.flight_id, event.carrier, delay)


airport_board = app.projection(
    "airport-board", by_origin, AirportRow, key="origin", indexes=[Ordered("average_delay_min")]
)


@airport_board.on(FlightDeparted)
def _(row: AirportRow | None, event: FlightDeparted) -> AirportRow:
    row = row or AirportRow(origin=event.origin)
    delay, departures = row.delay_sum_min + event.departure_delay_min, row.departures + 1
    worst, flight = worse(row.worst_delay_min, row.worst_flight, event.departure_delay_min, event.flight_id)
    return replace(
        row, departures=departures, delay_sum_min=delay, average_delay_min=average(delay, departures),
        worst_delay_min=worst, worst_flight=flight,
    )  # fmt: skip


@airport_board.on(FlightCancelled)
def _(row: AirportRow | None, event: FlightCancelled) -> AirportRow:
    row = row or AirportRow(origin=event.origin)
    return replace(row, cancelled=row.cancelled + 1)


carrier_board = app.projection(
    "carrier-board",
    by_carrier,
    CarrierRow,
    key="carrier",
    indexes=[
        Exact("punctuality"),
        Ordered("average_delay_min"),
        Ordered("cancelled"),
        Prefix("carrier"),
    ],
)


@carrier_board.on(FlightDeparted)
def _(row: CarrierRow | None, event: FlightDeparted) -> CarrierRow:
    row = row or CarrierRow(carrier=event.carrier)
    return replace(row, departures=row.departures + 1)


@carrier_board.on(FlightArrived)
def _(row: CarrierRow | None, event: FlightArrived) -> CarrierRow:
    row = row or CarrierRow(carrier=event.carrier)
    delay = arrival_delay_min(event)
    total, arrivals = row.delay_sum_min + delay, row.arrivals + 1
    worst, flight = worse(row.worst_delay_min, row.worst_flight, delay, event.flight_id)
    return replace(
        row, arrivals=arrivals, delay_sum_min=total, average_delay_min=average(total, arrivals),
        worst_delay_min=worst, worst_flight=flight, punctuality=punctuality(total, arrivals),
    )  # fmt: skip


@carrier_board.on(FlightCancelled)
def _(row: CarrierRow | None, event: FlightCancelled) -> CarrierRow:
    row = row or CarrierRow(carrier=event.carrier)
    return replace(row, cancelled=row.cancelled + 1)
