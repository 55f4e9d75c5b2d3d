"""Topics as declared: keys, partitions, and the message that an event becomes."""

import uuid
import zlib
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamlib.errors import DeclarationError, PublishError
from streamlib.event import Event, Registry
from streamlib.keys import MAX_ID_BYTES
from streamlib.message import Message
from streamlib.topic import MAX_PARTITIONS, TopicSpec


class Placed(Event, version=3):
    order_id: str | None = "o-1"
    number: int = 7


class Shipped(Event):
    order_id: str


class Stranger(Event):
    order_id: str


def topic(**changed: Any) -> TopicSpec:
    options: dict[str, Any] = {"name": "orders", "registry": Registry([Placed]), "key": "order_id"}
    return TopicSpec(**(options | changed))


@given(key=st.text(min_size=1), partitions=st.integers(2, MAX_PARTITIONS))
def test_the_partition_of_a_key_is_its_crc32_modulo_the_partitions(key: str, partitions: int) -> None:
    message = Message(id="any", type="Placed", key=key)
    assert topic(partitions=partitions).partition_of(message) == zlib.crc32(key.encode()) % partitions


@pytest.mark.row(72)
def test_partitions_of_known_keys_never_change() -> None:
    """Stored events stay where they are: these numbers are the same in every version."""
    spec = topic(partitions=8)
    keys = ["o-1", "o-2", "customer-42", "Zürich", "日本", ""]
    found = [spec.partition_of(Message(id="event-1", type="Placed", key=key)) for key in keys]
    assert found == [2, 0, 5, 6, 4, 4]


def test_events_without_a_key_are_spread_by_their_id() -> None:
    spec = topic(partitions=4, key=None)
    seen = {spec.partition_of(spec.message(Placed())) for _ in range(200)}
    assert seen == {0, 1, 2, 3}


def test_one_partition_takes_everything() -> None:
    assert topic().partition_of(Message(id="e", type="Placed", key="anything")) == 0


def test_a_message_carries_type_version_key_and_a_fresh_id() -> None:
    spec = topic()
    message = spec.message(Placed(order_id="o-9"), time_ms=5, headers={"a": "b"})
    assert (message.type, message.version, message.key) == ("Placed", 3, "o-9")
    assert (message.time_ms, message.headers) == (5, {"a": "b"})
    assert uuid.UUID(message.id).version == 7
    assert spec.codec.decode(message, Placed) == Placed(order_id="o-9")
    assert spec.message(Placed(), event_id="mine", key="other").key == "other"


def test_a_key_that_is_no_text_becomes_text() -> None:
    assert topic(key="number").message(Placed()).key == "7"


def test_a_key_of_none_is_refused() -> None:
    with pytest.raises(PublishError, match=r"Placed\.order_id is None, but topic 'orders' is keyed by it"):
        topic().message(Placed(order_id=None))


@pytest.mark.parametrize("bad", ["", "a\x00b", "x" * (MAX_ID_BYTES + 1), "é" * 101])
def test_an_event_id_that_could_not_be_read_again_is_refused(bad: str) -> None:
    with pytest.raises(PublishError, match=r"event id .* 1 to 200 without NUL"):
        topic().message(Placed(), event_id=bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"event_id": "\ud800"},
        {"key": "\ud800"},
        {"key": "x" * (MAX_ID_BYTES + 1)},
        {"correlation_id": "\ud800"},
        {"causation_id": "\ud800"},
        {"headers": {"a": "\ud800"}},
        {"time_ms": -1},
        {"time_ms": 10**17},
    ],
)
def test_an_envelope_that_could_not_be_read_again_is_refused(bad: dict[str, Any]) -> None:
    spec = topic()
    with pytest.raises(PublishError):
        spec.codec.write(spec.message(Placed(), **bad))


@given(event_id=st.text(min_size=1, max_size=MAX_ID_BYTES), key=st.text(max_size=MAX_ID_BYTES))
def test_every_id_and_key_that_is_allowed_can_be_read_again(event_id: str, key: str) -> None:
    assume(all(len(text.encode()) <= MAX_ID_BYTES and "\x00" not in text for text in (event_id, key)))
    spec = topic()
    message = spec.message(Placed(), event_id=event_id, key=key)
    assert spec.codec.read("1-1", spec.codec.write(message)) == message


def test_an_event_the_topic_does_not_declare_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"'orders' does not declare Stranger; it has \['Placed'\]"):
        topic().message(Stranger(order_id="o"))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"name": "orders.1"}, "must not end in .<digits>"),
        ({"name": "or ders"}, "a name is 1 to 64 of the characters"),
        ({"registry": Registry([])}, "declares no event classes"),
        ({"partitions": 0}, "partitions=0, not 1 to 1024"),
        ({"partitions": MAX_PARTITIONS + 1}, "not 1 to 1024"),
        ({"unknown": "drop"}, "choose 'park', 'dead-letter' or 'skip'"),
        ({"durability": "disk"}, "choose 'primary', 'fsync' or 'replicas:n'"),
        ({"durability": "replicas:0"}, "choose 'primary', 'fsync' or 'replicas:n'"),
        ({"key": "customer"}, "keyed by 'customer', but Placed has no such field"),
        ({"registry": Registry([Placed, Shipped]), "key": "number"}, "but Shipped has no such field"),
    ],
)
def test_a_wrong_declaration_names_the_topic_and_the_way_out(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        topic(**changed)
    assert says in str(caught.value)
    assert "or" in str(caught.value)


@pytest.mark.parametrize("durability", ["primary", "fsync", "replicas:1", "replicas:12"])
def test_durability_has_three_forms(durability: str) -> None:
    assert topic(durability=durability).durability == durability
