"""Aggregates without Redis: what a class may declare, what recording does and refuses, what a snapshot can hold."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, ClassVar

import pytest

from streamlib import Aggregate, App, Event, StreamlibError, applies
from streamlib.errors import DeclarationError, PublishError, UnappliedEvent
from streamlib.eventsourcing.snapshots import Snapshots
from streamlib.redisio.aggregate_reader import Page
from tests.helpers.accounts import Account, Deposited, Opened


class Closed(Event):
    account_id: str


# -- state


def test_recording_changes_the_state_at_once_and_the_version_not() -> None:
    account = Account("a")
    account.open("Ada")
    account.deposit(5)
    assert (account.id, account.version, account.owner, account.balance) == ("a", 0, "Ada", Decimal(5))
    assert [type(event) for event in account._recorded] == [Opened, Deposited]


def test_each_aggregate_has_its_own_copy_of_a_mutable_default() -> None:
    one, other = Account("a"), Account("b")
    one.open("Ada")
    assert (one.notes, other.notes, Account.notes) == (["opened for Ada"], [], [])


def test_a_method_that_refuses_records_nothing() -> None:
    account = Account("a")
    with pytest.raises(ValueError, match="must be positive"):
        account.deposit(-1)
    assert not account.balance
    assert not account._recorded


def test_an_event_that_the_aggregate_does_not_know_is_an_error_with_its_name() -> None:
    account = Account("a")
    with pytest.raises(UnappliedEvent, match=r"Account 'a' does not know Closed: .*@applies\(Closed\)"):
        account.record(Closed(account_id="a"))
    assert account._recorded == []


def test_an_event_about_another_id_is_refused_as_soon_as_the_topic_is_known() -> None:
    class Keyed(Account):
        pass

    app = App("bank")
    app.repository(Keyed, app.topic("accounts", Opened, Deposited, key="account_id"))
    account = Keyed("a")
    with pytest.raises(PublishError, match=r"Keyed 'a' records Deposited with account_id 'b'"):
        account.record(Deposited(account_id="b"))
    assert not account.balance
    assert not account._recorded


class Branch(StrEnum):
    NORTH = "north"


class Numbered(Event):
    account_id: int | Branch


@pytest.mark.parametrize(("id", "value"), [("7", 7), ("north", Branch.NORTH)])
def test_an_event_tells_the_id_in_a_type_of_its_own(id: str, value: int | Branch) -> None:
    class Office(Aggregate):
        count: int = 0

        @applies(Numbered)
        def _numbered(self, event: Numbered) -> None:
            self.count += 1

    Office._keyed_by("account_id")
    office = Office(id)
    office.record(Numbered(account_id=value))
    with pytest.raises(PublishError, match="records Numbered with account_id 8"):
        office.record(Numbered(account_id=8))
    assert office.count == 1


def test_what_is_no_field_cannot_be_set() -> None:
    account = Account("a")
    with pytest.raises(AttributeError, match=r"Account\.balanse is no field; declare it in the class body"):
        account.balanse = 1
    for name in ("id", "version"):
        with pytest.raises(AttributeError, match=f"Account.{name} is set by streamlib"):
            setattr(account, name, 1)


def test_recording_inside_an_applier_is_refused() -> None:
    class Echo(Aggregate):
        heard: int = 0

        @applies(Deposited)
        def _deposited(self, event: Deposited) -> None:
            self.record(event)

    with pytest.raises(StreamlibError, match="records Deposited while it applies an event"):
        Echo("a").record(Deposited(account_id="a"))


def test_a_subclass_inherits_fields_and_appliers_and_may_replace_them() -> None:
    class Gold(Account):
        bonus: Decimal = Decimal(0)

        @applies(Deposited)
        def _doubled(self, event: Deposited) -> None:
            self.bonus += event.amount

        def _opened(self, event: Opened) -> None:
            self.owner = event.owner.upper()

    gold = Gold("g")
    gold.open("Ada")
    gold.deposit(5)
    assert (gold.owner, gold.balance, gold.bonus) == ("ADA", Decimal(0), Decimal(5))
    assert repr(gold) == "Gold('g', version=0, owner='ADA', balance=Decimal('0'), notes=[], bonus=Decimal('5'))"


# -- declarations that are refused


def no_default() -> Any:
    class Broken(Aggregate):
        balance: Decimal

    return Broken


def own_id() -> Any:
    class Broken(Aggregate):
        id: str = ""

    return Broken


def two_appliers() -> Any:
    class Broken(Aggregate):
        @applies(Deposited)
        def one(self, event: Deposited) -> None: ...

        @applies(Deposited)
        def two(self, event: Deposited) -> None: ...

    return Broken


def bad_version() -> Any:
    class Broken(Aggregate, version=0):
        pass

    return Broken


@pytest.mark.parametrize(
    ("declare", "why"),
    [
        (no_default, r"Broken\.balance has no default"),
        (own_id, r"Broken\.id: the name is taken"),
        (two_appliers, r"Broken: Deposited is applied by one and by two"),
        (bad_version, r"Broken\(version=0\)"),
        (lambda: applies(), "name the events"),
        (lambda: applies(int), "subclasses of streamlib.Event"),  # type: ignore[arg-type]
    ],
)
def test_a_class_that_cannot_be_an_aggregate(declare: Callable[[], Any], why: str) -> None:
    with pytest.raises(DeclarationError, match=why):
        declare()


def test_a_repository_that_does_not_fit_its_topic() -> None:
    class Silent(Aggregate):
        balance: int = 0
        limit: ClassVar[int]

    class Strange(Account):
        @applies(Closed)
        def _closed(self, event: Closed) -> None: ...

    app = App("bank")
    topic = app.topic("accounts", Opened, Deposited, key="account_id")
    cases: list[tuple[Any, int | None, str]] = [
        (Silent, None, "Silent applies no event"),
        (Strange, None, r"Strange applies Closed, which topic 'accounts' does not declare"),
        (Aggregate, None, "no subclass of streamlib.Aggregate"),
        (Deposited, None, "no subclass of streamlib.Aggregate"),
        (Account, 0, "snapshot_every=0"),
    ]
    for cls, every, why in cases:
        with pytest.raises(DeclarationError, match=why):
            app.repository(cls, topic, snapshot_every=every)


class Opaque:
    """No type that msgspec knows."""


def test_a_field_that_no_snapshot_can_hold_is_refused_where_snapshots_are_asked_for() -> None:
    class Odd(Account):
        thing: Opaque | None = None

    app = App("bank")
    topic = app.topic("accounts", Opened, Deposited, key="account_id")
    app.repository(Odd, topic)
    with pytest.raises(DeclarationError, match="Odd cannot be kept in snapshots"):
        app.repository(Odd, topic, snapshot_every=10)


# -- snapshots: the state comes back as it was, or there is none


class Line(Event):
    name: str
    price: Decimal


class Everything(Aggregate):
    text: str = ""
    blob: bytes = b""
    number: int = 0
    real: float = 0.0
    money: Decimal = Decimal(0)
    at: datetime | None = None
    tags: list[str] = []  # noqa: RUF012
    pair: tuple[int, ...] = ()
    seen: set[int] = set()  # noqa: RUF012
    lines: dict[str, Line] = {}  # noqa: RUF012
    free: dict[str, Any] = {}  # noqa: RUF012

    @applies(Deposited)
    def _deposited(self, event: Deposited) -> None: ...


def as_snapshot(aggregate: Aggregate, commit_id: str = "c") -> bytes | None:
    aggregate.__dict__["version"] = 7
    aggregate._kept.entry_id = "1-1"
    return Snapshots(type(aggregate)).encode(aggregate, commit_id)


def restored(cls: type[Any], raw: bytes) -> Any:
    aggregate = cls("a")
    assert Snapshots(cls).restore(aggregate, Page(raw, 7, 7, []))
    return aggregate


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", "é\x00 \n"),
        ("blob", b"\x00\xff 1 2 3"),
        ("number", -(1 << 62)),
        ("real", 0.1),
        ("money", Decimal("10.50")),
        ("at", datetime(2026, 11, 28, 20, 30, 0, 1, tzinfo=UTC)),
        ("tags", ["_type_", "_data_", ""]),
        ("pair", (1, 2)),
        ("seen", {1, 2}),
        ("lines", {"a": Line(name="x", price=Decimal("1.00"))}),
        ("free", {"_type_": "x", "_data_": {"__struct_fields__": [1, None, True, 2.5, "s"]}}),
    ],
)
def test_state_comes_back_from_a_snapshot_as_it_was(name: str, value: Any) -> None:
    aggregate = Everything("a")
    setattr(aggregate, name, value)
    raw = as_snapshot(aggregate)
    assert raw is not None
    back = restored(Everything, raw)
    assert (getattr(back, name), type(getattr(back, name))) == (value, type(value))
    assert (back.version, back._kept.entry_id) == (7, "1-1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("free", {"amount": Decimal(1)}),
        ("free", {"pair": (1, 2)}),
        ("number", "1"),
        ("number", 1 << 70),
        ("real", float("nan")),
        ("real", 1),
        ("tags", type("Tags", (list,), {})(["a"])),
    ],
)
def test_state_that_would_come_back_changed_gets_no_snapshot(
    name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    aggregate = Everything("a")
    setattr(aggregate, name, value)
    assert as_snapshot(aggregate) is None
    assert "Everything 'a' gets no snapshot" in caplog.text


def test_a_snapshot_that_cannot_be_read_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    class Other(Account):
        more: int = 0

    raw = as_snapshot(Account("a"))
    assert raw is not None
    for cls, damaged in ((Account, raw[:-1]), (Account, raw + b"\x00"), (Other, raw)):
        aggregate = cls("a")
        assert not Snapshots(cls).restore(aggregate, Page(damaged, 7, 7, []))
        assert aggregate.version == 0
    assert caplog.text.count("cannot be read and is not used") == 3
