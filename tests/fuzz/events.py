"""The events that the fuzzer's entries are read as: every kind of field, nesting without end, code of their own."""

from __future__ import annotations

import datetime
import enum
import uuid
from decimal import Decimal
from typing import Any

import msgspec

from streamlib import ReadModel
from streamlib.codec import Codec
from streamlib.event import Event, Registry
from streamlib.topic import TopicSpec, Unknown
from streamlib.versions import Upcasters


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Line(msgspec.Struct, frozen=True):
    sku: str
    price: Decimal = Decimal(0)


class Paid(Event):
    order_id: str
    amount: Decimal = Decimal(0)
    count: int = 0
    celsius: float = 0.0
    at: datetime.datetime | None = None
    day: datetime.date | None = None
    number: uuid.UUID | None = None
    size: Size = Size.SMALL
    raw: bytes = b""
    lines: tuple[Line, ...] = ()
    names: dict[str, int] = msgspec.field(default_factory=dict)
    anything: Any = None


class Plain(Event):
    order_id: str
    count: int = 0


class Tree(Event):
    order_id: str
    children: list[Tree] = msgspec.field(default_factory=list)


class CodeOfTheClass(KeyError):
    """What the code of a class raises, which msgspec lets through."""


class Touchy(Event):
    order_id: str

    def __post_init__(self) -> None:
        if self.order_id != "o-1":
            raise CodeOfTheClass(self.order_id)


class Moved(Event, version=3):
    order_id: str
    status: str


class Row(ReadModel):
    order_id: str
    amount: Decimal = Decimal(0)
    anything: Any = None


def spec(codec: Codec, unknown: Unknown = "dead-letter") -> TopicSpec:
    """A topic of all of them, with upcasters that trust what they get."""
    upcasters = Upcasters()
    upcasters.add("Moved", 1, 3, lambda data: {"order_id": data["order_id"], "state": data["state"].upper()})
    upcasters.add("Moved", 2, 3, lambda data: {**data, "status": data["state"]})
    return TopicSpec(
        name="orders",
        registry=Registry([Paid, Plain, Tree, Touchy, Moved], upcasters),
        key="order_id",
        codec=codec,
        unknown=unknown,
    )
