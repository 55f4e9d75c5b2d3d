"""Upcasting: what an app may declare, and how stored data of older versions become events of the class."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest

from streamlib.app import App
from streamlib.codec import Codec, FlatCodec, NativeCodec, RawCodec
from streamlib.errors import DeclarationError, DecodeError, SchemaError, UnknownType
from streamlib.event import Command, Event, Registry, stored_name, type_of_stored
from streamlib.message import Message
from streamlib.topic import TopicSpec, raise_version

V1 = {"order_id": "o-1", "state": "shipped"}


class Updated(Event, version=3):
    order_id: str
    status: str
    by: str = "nobody"


class Old(Event, version=1, type_name="Updated"):
    order_id: str
    state: str


class Middle(Event, version=2, type_name="Updated"):
    order_id: str
    status: str


class Rich(Event, version=2):
    amount: Decimal
    at: datetime
    of: UUID
    raw: bytes
    by_number: dict[int, Decimal] = msgspec.field(default_factory=dict)
    big: int = 0
    ratio: float = 0.0


class Elsewhere(Event, version=2):
    n: int


class Ship(Command, version=2):
    order_id: str


def state_became_status(data: dict[str, Any]) -> dict[str, Any]:
    return {"order_id": data["order_id"], "status": data["state"]}


def by_whom(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"by": "migration"}


def shop(*classes: type[Event], codec: Codec | None = None, up: bool = True) -> tuple[App, TopicSpec]:
    """An app whose topic has these classes (Updated by default), with both steps up to version 3."""
    app = App("shop")
    topic = app.topic("orders", *(classes or (Updated,)), codec=codec)
    if up:
        app.upcast(Updated, from_version=1)(state_became_status)
        app.upcast(Updated, from_version=2)(by_whom)
    return app, topic.spec


def stored(version: int, data: dict[str, Any], name: str = "Updated") -> Message:
    return Message(id="e-1", type=name, version=version, data=msgspec.json.encode(data))


# -- decoding -------------------------------------------------------------------------------------------------------


def test_each_version_is_raised_step_by_step_to_that_of_its_class() -> None:
    _, topic = shop()
    assert topic.decode(stored(1, V1)) == Updated(order_id="o-1", status="shipped", by="migration")
    assert topic.decode(stored(2, {"order_id": "o-1", "status": "new"})) == Updated(
        order_id="o-1", status="new", by="migration"
    )
    assert topic.decode(stored(3, {"order_id": "o-1", "status": "new"})) == Updated(order_id="o-1", status="new")


def test_the_class_of_an_older_version_is_the_one_it_is_raised_to() -> None:
    _, topic = shop()
    assert {topic.registry.find("Updated", version) for version in (1, 2, 3)} == {Updated}
    with pytest.raises(UnknownType, match=r"version 4; this worker knows versions \[3\] and raises \[1, 2\]"):
        topic.registry.find("Updated", 4)


def test_a_class_declared_for_an_old_version_wins_over_upcasting() -> None:
    _, topic = shop(Updated, Old)
    assert topic.decode(stored(1, V1)) == Old(order_id="o-1", state="shipped")
    assert topic.decode(stored(2, {"order_id": "o-1", "status": "new"})) == Updated(
        order_id="o-1", status="new", by="migration"
    )


def test_a_step_belongs_to_the_class_that_it_names() -> None:
    """With classes for versions 2 and 3, version 1 becomes that of them for which its upcaster was declared."""
    app, topic = shop(Updated, Middle, up=False)
    app.upcast(Middle, from_version=1)(state_became_status)
    assert topic.decode(stored(1, V1)) == Middle(order_id="o-1", status="shipped")
    other, topic = shop(Updated, Middle)
    other.check_declared()
    assert topic.decode(stored(1, V1)) == Updated(order_id="o-1", status="shipped", by="migration")


def test_versions_without_any_upcaster_are_unknown_as_ever() -> None:
    app, topic = shop(up=False)
    app.check_declared()
    with pytest.raises(UnknownType, match=r"no class for 'Updated' version 1; this worker knows versions \[3\]"):
        topic.decode(stored(1, V1))


def test_steps_may_begin_above_the_first_version() -> None:
    app, topic = shop(up=False)
    app.upcast(Updated, from_version=2)(by_whom)
    app.check_declared()
    raised = topic.decode(stored(2, {"order_id": "o-1", "status": "new"}))
    assert raised == Updated(order_id="o-1", status="new", by="migration")
    with pytest.raises(UnknownType):
        topic.decode(stored(1, V1))


RICH = Rich(
    amount=Decimal("9.90"), at=datetime(2026, 1, 2, 3, 4, 5, 6, UTC), of=UUID(int=7), raw=b"\x00\xff",
    by_number={1: Decimal("0.10")}, ratio=0.1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("codec", "big"), [(NativeCodec(), 2**80), (NativeCodec("msgpack"), 2**63), (RawCodec(Rich, field="x"), 2**80)]
)
def test_every_kind_of_value_survives_the_way_through_an_upcaster(codec: Codec, big: int) -> None:
    app = App("shop")
    topic = app.topic("riches", Rich, codec=codec).spec
    app.upcast(Rich, from_version=1)(lambda data: dict(data))
    event = msgspec.structs.replace(RICH, big=big)
    raised = topic.decode(Message(id="e-1", type="Rich", version=1, data=codec.encode(event)))
    assert raised == event
    assert isinstance(raised, Rich)
    assert str(raised.amount) == "9.90", "a Decimal keeps its digits"


def test_an_upcaster_may_return_values_as_the_class_has_them() -> None:
    app = App("shop")
    topic = app.topic("riches", Rich).spec
    app.upcast(Rich, from_version=1)(
        lambda data: {"amount": Decimal(data["cents"]) / 100, "at": RICH.at, "of": RICH.of, "raw": b"x"}
    )
    raised = topic.decode(stored(1, {"cents": 1250}, "Rich"))
    assert raised == Rich(amount=Decimal("12.5"), at=RICH.at, of=RICH.of, raw=b"x")


def test_flat_entries_of_an_old_class_are_raised_and_converted() -> None:
    """Entries of other programs name no version: they have that of the class which the codec is given."""
    app = App("shop")
    topic = app.topic("orders", Updated, codec=FlatCodec(Old)).spec
    app.upcast(Updated, from_version=1)(state_became_status)
    app.upcast(Updated, from_version=2)(by_whom)
    app.check_declared()
    message = topic.codec.read("7-0", [b"order_id", b"o-1", b"state", b"shipped"])
    assert topic.decode(message) == Updated(order_id="o-1", status="shipped", by="migration")


def test_the_stored_data_are_not_touched() -> None:
    _, topic = shop()
    message = stored(1, V1)
    before = message.data
    topic.decode(message)
    assert (message.version, message.data) == (1, before)
    raised = raise_version(topic.registry, topic.codec, message)
    assert (raised.version, msgspec.json.decode(raised.data)["by"]) == (3, "migration")


def test_a_command_is_raised_too() -> None:
    app = App("shop")

    async def first(command: Ship) -> None: ...

    app.command_handler(first)
    app.upcast(Ship, from_version=1)(lambda data: {"order_id": data["id"]})
    (topic,) = (topic.spec for topic in app.topics.values())
    assert topic.decode(stored(1, {"id": "o-1"}, "Ship")) == Ship(order_id="o-1")


# -- bad data -------------------------------------------------------------------------------------------------------


def nan(data: dict[str, Any]) -> dict[str, Any]:
    return {"order_id": float("nan"), "status": ""}


def an_object(data: dict[str, Any]) -> dict[str, Any]:
    return {"order_id": object(), "status": ""}


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (
            lambda data: {"order_id": data["nope"]},
            r"Updated e-1: the upcaster .*<lambda> failed on data of version 2: K",
        ),
        (
            lambda data: None,
            r"Updated e-1: the upcaster .*<lambda> returned NoneType for data of version 2, not a dict",
        ),
        (lambda data: [data], r"returned list for data of version 2, not a dict with those of version 3"),
        (lambda data: {"order_id": "o"}, r"Updated e-1: .*`status`; so the upcasters left what .* as version 2"),
        (
            lambda data: {"order_id": 7, "status": ""},
            r"Expected `str`, got `int` - at `\$\.order_id`; so the upcasters",
        ),
        (nan, r"Updated e-1\['order_id'\] is nan"),
        (an_object, r"Updated e-1: what the upcasters made of it cannot be stored"),
    ],
)
def test_an_upcaster_that_raises_or_returns_what_does_not_fit_is_a_schema_error(
    step: Callable[[dict[str, Any]], Any], says: str
) -> None:
    app, topic = shop(up=False)
    app.upcast(Updated, from_version=2)(step)
    with pytest.raises(SchemaError, match=says) as caught:
        topic.decode(stored(2, {"order_id": "o-1", "status": "new"}))
    assert caught.value.reason == "schema"


def test_the_error_of_an_upcaster_keeps_its_cause() -> None:
    _, topic = shop()
    with pytest.raises(SchemaError) as caught:
        topic.decode(stored(1, {"order_id": "o-1"}))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("data", "error"),
    [(b"{", DecodeError), (b"[1]", SchemaError), (b"\xff", DecodeError), (b'{"a":' + b"[" * 99999, DecodeError)],
)
def test_old_data_that_are_none_are_what_they_are_without_upcasting(data: bytes, error: type[DecodeError]) -> None:
    _, topic = shop()
    with pytest.raises(error, match="Updated e-1") as caught:
        topic.decode(Message(id="e-1", type="Updated", version=1, data=data))
    assert type(caught.value) is error


# -- declarations ---------------------------------------------------------------------------------------------------


def test_a_hole_in_a_chain_is_refused_by_name_with_the_step_that_is_missing() -> None:
    app, _ = shop(up=False)
    app.upcast(Updated, from_version=1)(state_became_status)
    with pytest.raises(DeclarationError) as caught:
        app.check_declared()
    assert "Updated: version 1 is raised to 2, but nothing raises version 2 to 3" in str(caught.value)
    assert "add @app.upcast(Updated, from_version=2)" in str(caught.value)


async def test_a_hole_is_found_when_the_app_is_opened_before_it_connects() -> None:
    app, _ = shop(up=False)
    app.upcast(Updated, from_version=1)(state_became_status)
    with pytest.raises(DeclarationError, match="nothing raises version 2 to 3"):
        await app.open()


@pytest.mark.parametrize("version", [0, -1, 3, 4])
def test_a_step_raises_a_version_below_that_of_the_class(version: int) -> None:
    app, _ = shop(up=False)
    with pytest.raises(DeclarationError, match=rf"from_version={version}: the class has version 3; .* from 1 to 2"):
        app.upcast(Updated, from_version=version)(by_whom)


def test_a_second_way_up_from_one_version_is_refused() -> None:
    app, _ = shop()
    with pytest.raises(DeclarationError, match="version 1 is raised by state_became_status and by by_whom"):
        app.upcast(Updated, from_version=1)(by_whom)
    both, _ = shop(Updated, Middle)
    with pytest.raises(DeclarationError, match="one version has one way up"):
        both.upcast(Middle, from_version=1)(state_became_status)


def test_a_class_that_no_topic_declares_is_refused() -> None:
    app, _ = shop()
    with pytest.raises(DeclarationError, match="upcast of Elsewhere: no topic of app 'shop' declares that class"):
        app.upcast(Elsewhere, from_version=1)(by_whom)


async def waits(data: dict[str, Any]) -> dict[str, Any]:
    return data


def takes_two(data: dict[str, Any], more: int) -> dict[str, Any]:
    return data


@pytest.mark.parametrize(
    ("step", "says"), [(waits, "must be a plain function"), (takes_two, "must take the data alone")]
)
def test_an_upcaster_is_a_plain_function_of_the_data(step: Any, says: str) -> None:
    app, _ = shop(up=False)
    with pytest.raises(DeclarationError, match=says):
        app.upcast(Updated, from_version=1)(step)


class Opaque:
    """A codec of somebody else, without the two methods that upcasting needs."""

    def __init__(self) -> None:
        native = NativeCodec()
        self.read, self.write, self.encode, self.decode = native.read, native.write, native.encode, native.decode


def test_a_codec_that_cannot_show_data_is_refused_where_upcasters_need_it() -> None:
    app, _ = shop(codec=Opaque(), up=False)
    app.check_declared()
    app.upcast(Updated, from_version=2)(by_whom)
    with pytest.raises(DeclarationError, match=r"topic 'orders', Updated: Opaque has no decode_plain and encode_plain"):
        app.check_declared()


def test_a_class_on_two_topics_is_raised_on_both_also_on_one_declared_later() -> None:
    app, orders = shop()
    copies = app.topic("copies", Updated).spec
    assert orders.decode(stored(1, V1)) == copies.decode(stored(1, V1))


# -- what groups say that they handle -------------------------------------------------------------------------------


def test_names_of_types_and_versions_are_never_mistaken_for_each_other() -> None:
    pairs = [("T", 1), ("T", 2), ("T@2", 1), ("T@2", 2), ("T@2@1", 1), ("T@", 1), ("T@x", 3)]
    assert len({stored_name(name, version) for name, version in pairs}) == len(pairs)
    assert (stored_name("T", 1), stored_name("T", 2)) == ("T", "T@2")
    assert [type_of_stored(stored_name(name, version)) for name, version in pairs] == [name for name, _ in pairs]


def test_a_class_stands_for_its_version_and_those_that_are_raised_to_it() -> None:
    _, topic = shop()
    assert topic.registry.stored_names(Updated) == {"Updated", "Updated@2", "Updated@3"}
    _, topic = shop(Updated, Old)
    assert topic.registry.stored_names(Updated) == {"Updated@2", "Updated@3"}
    assert topic.registry.stored_names(Old) == {"Updated"}


def test_only_a_version_above_all_that_are_known_is_newer() -> None:
    registry = Registry([Old, Updated])
    assert [registry.is_newer("Updated", version) for version in (1, 2, 3, 4)] == [False, False, False, True]
    assert not registry.is_newer("Nowhere", 9)
