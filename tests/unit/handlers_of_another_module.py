"""Declarations of a module without `from __future__ import annotations`."""

from streamlib import Event, ReadModel


class Arrived(Event):
    order_id: str


class Row(ReadModel):
    order_id: str


async def evaluated(event: Arrived) -> None: ...
