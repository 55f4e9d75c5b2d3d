"""Events as users declare them, the registry that finds their classes, and event ids."""

import os
import time
import types
import uuid
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamlib.errors import DeclarationError, UnknownType
from streamlib.event import Event, Registry, check_resolvable, event_type, event_version
from streamlib.message import Position, entry_order, entry_time_ms, event_ids, new_event_id, new_event_ids


class Opened(Event):
    account_id: str
    limit: int = 0


class OpenedAgain(Event, version=2, type_name="Opened"):
    account_id: str


class Child(Opened):
    colour: str


class Lost(Event):
    where: "Nowhere"  # type: ignore[name-defined]  # noqa: F821 - the name that cannot be found is the case


class Unstorable(Event):
    what: Opened | Child


def test_an_event_is_called_like_its_class_in_version_1() -> None:
    assert (event_type(Opened), event_version(Opened)) == ("Opened", 1)


def test_name_and_version_are_class_keywords_and_are_not_inherited() -> None:
    assert (event_type(OpenedAgain), event_version(OpenedAgain)) == ("Opened", 2)
    assert (event_type(Child), event_version(Child)) == ("Child", 1)
    assert Child(account_id="a", colour="red").limit == 0


def test_events_are_frozen_and_equal_by_value() -> None:
    event = Opened(account_id="a")
    with pytest.raises(AttributeError):
        event.limit = 5  # type: ignore[misc]
    assert event == Opened(account_id="a")
    assert hash(event) == hash(Opened(account_id="a"))


def test_events_take_keywords_only() -> None:
    with pytest.raises(TypeError):
        Opened("a")  # type: ignore[call-arg]


@pytest.mark.parametrize("version", [0, -1, 1_000_001])
def test_a_version_is_a_number_from_1(version: int) -> None:
    with pytest.raises(DeclarationError, match=rf"Bad\(version={version}\)"):
        types.new_class("Bad", (Event,), {"version": version})


def test_an_annotation_that_cannot_be_found_is_a_clear_error() -> None:
    with pytest.raises(DeclarationError, match=r"Lost: the annotation names 'Nowhere'.*not inside a function"):
        check_resolvable(Lost)


def test_a_field_that_cannot_be_stored_is_a_clear_error() -> None:
    with pytest.raises(DeclarationError, match=r"Unstorable: .*Struct"):
        Registry([Unstorable])


def test_the_registry_finds_a_class_by_stored_type_and_version() -> None:
    registry = Registry([Opened, OpenedAgain, Child])
    assert registry.find("Opened", 1) is Opened
    assert registry.find("Opened", 2) is OpenedAgain
    assert registry.type_names == {"Opened", "Child"}
    assert registry.classes == (Opened, OpenedAgain, Child)


def test_an_unknown_type_or_version_names_what_is_known() -> None:
    registry = Registry([Opened, OpenedAgain])
    with pytest.raises(UnknownType, match=r"'Closed' version 1; this worker knows types \['Opened'\]") as caught:
        registry.find("Closed", 1)
    assert caught.value.reason == "unknown_type"
    with pytest.raises(UnknownType, match=r"'Opened' version 9; this worker knows versions \[1, 2\]"):
        registry.find("Opened", 9)


def test_two_classes_of_one_type_and_version_are_refused_by_name() -> None:
    twin = types.new_class("Opened", (Event,))
    with pytest.raises(DeclarationError, match="are both Opened version 1; give one of them type_name="):
        Registry([Opened, twin])
    assert Registry([Opened, Opened]).classes == (Opened,), "the same class twice is no conflict"


@pytest.mark.parametrize("not_an_event", [Event, str, "Opened", None])
def test_only_subclasses_of_event_are_registered(not_an_event: object) -> None:
    with pytest.raises(DeclarationError, match=r"is not a subclass of streamlib\.Event"):
        Registry([not_an_event])  # type: ignore[list-item]


def test_event_ids_are_uuid7_of_their_time() -> None:
    before_ms = time.time_ns() // 1_000_000
    ids = [uuid.UUID(new_event_id()) for _ in range(1000)]
    after_ms = time.time_ns() // 1_000_000
    assert all(one.version == 7 and one.variant == uuid.RFC_4122 for one in ids)
    assert all(before_ms <= one.int >> 80 <= after_ms for one in ids)
    assert len(set(ids)) == 1000


def test_ids_made_together_are_uuid7s_too_and_all_different() -> None:
    made = [*new_event_ids(1200), *new_event_ids(0), *new_event_ids(3)]
    assert len(set(made)) == len(made) == 1203
    assert all(str(uuid.UUID(one)) == one and uuid.UUID(one).version == 7 for one in made)
    assert all(uuid.UUID(one).variant == uuid.RFC_4122 for one in made)


def test_ids_made_together_sort_in_their_order_whatever_the_system_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    for drawn in (b"\x00", b"\xff", b"\x7f", b"\x88"):
        monkeypatch.setattr(os, "urandom", lambda size, drawn=drawn: drawn * size)
        made = new_event_ids(500)
        assert made == sorted(set(made))
        assert all(str(uuid.UUID(one)) == one and uuid.UUID(one).variant == uuid.RFC_4122 for one in made)
        assert {uuid.UUID(one).int >> 64 for one in made} == {uuid.UUID(made[0]).int >> 64}


def test_saves_at_once_have_ids_far_apart() -> None:
    """They lie in one millisecond: what keeps them apart is chance alone."""
    firsts = sorted(uuid.UUID(new_event_ids(500)[0]).int & (1 << 62) - 1 for _ in range(2_000))
    assert min(after - before for before, after in pairwise(firsts)) > 1 << 20
    assert sum(first >> 61 for first in firsts) in range(800, 1200)


def test_ids_taken_one_after_another_tell_each_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, found = event_ids(), []
    for ms in (5, 5, 6, 1_700_000_000_000):
        monkeypatch.setattr(time, "time_ns", lambda now=ms: now * 1_000_000)
        found.append(uuid.UUID(next(ids)).int >> 80)
    assert found == [5, 5, 6, 1_700_000_000_000]


def test_event_ids_sort_by_time_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for ms in (0, 1, 255, 1_700_000_000_000, 1_700_000_000_001, (1 << 48) - 1):
        monkeypatch.setattr(time, "time_ns", lambda now=ms: now * 1_000_000)
        made.append(new_event_id())
    assert made == sorted(made)


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), min_size=2))
def test_entry_ids_sort_as_numbers_and_tell_their_time(pairs: list[tuple[int, int]]) -> None:
    ids = [f"{ms}-{seq}" for ms, seq in pairs]
    assert [entry_order(one) for one in sorted(ids, key=entry_order)] == sorted(pairs)
    assert [entry_time_ms(one) for one in ids] == [ms for ms, _ in pairs]
    assert entry_order("5") == (5, 0)


def test_a_position_is_a_value() -> None:
    assert Position("orders", 1, "5-0") == Position("orders", 1, "5-0")
    assert len({Position("orders", 1, "5-0"), Position("orders", 1, "5-0")}) == 1
