"""What doctor thinks of groups and keys, from facts alone."""

import re
from collections import Counter
from typing import Any

import pytest
from click.testing import CliRunner

from streamlib.cli.root import main
from streamlib.ops.doctor_groups import GroupFacts, Stranger, check_group, check_stranger
from streamlib.ops.doctor_keys import MOST_TOLD, Known, Lost, check_keys, orphans_of
from streamlib.ops.inspect import GroupInfo, Owner

IDLE: dict[str, Any] = {
    "group": "email",
    "kind": "handler",
    "lag": 0,
    "lag_known": True,
    "pending": 0,
    "retrying": 0,
    "dead": 0,
    "consumers": 0,
    "oldest_seconds": 0.0,
    "oldest_pending_seconds": 0.0,
    "oldest_undelivered_seconds": 0.0,
    "backlog": 0,
}
BEHIND = {"lag": 5, "backlog": 5, "oldest_seconds": 31.0, "oldest_undelivered_seconds": 31.0}
HELD = {"pending": 5, "backlog": 5, "oldest_seconds": 31.0, "oldest_pending_seconds": 31.0}


def facts(
    *, workers: int = 0, stuck: int = 0, newest_dead_s: float | None = None, changes: dict[str, Any] | None = None
) -> GroupFacts:
    return GroupFacts(
        topic="orders",
        info=GroupInfo(**IDLE | (changes or {})),
        workers=workers,
        stuck=stuck,
        newest_dead_s=newest_dead_s,
        lease_s=30.0,
    )


@pytest.mark.parametrize(
    ("group", "found"),
    [
        (facts(), []),
        (facts(changes=BEHIND), [("dead_group", "danger")]),
        (facts(changes=BEHIND, workers=1), []),
        (facts(changes=BEHIND | {"kind": "projection", "owners": [Owner(0, "w-1")]}), []),
        (facts(changes=BEHIND | {"oldest_undelivered_seconds": 30.0}), []),
        (facts(changes={"retrying": 2, "backlog": 2}), [("dead_group", "danger")]),
        (facts(changes=HELD), []),
        (facts(changes=HELD, stuck=5), [("stuck_pending", "danger")]),
        (facts(changes=HELD, stuck=5, workers=1), []),
        (facts(changes={"paused": True}), []),
        (facts(changes=BEHIND | {"paused": True}, workers=1), [("paused_group", "warning")]),
        (facts(changes={"halted_keys": 1}, workers=1), [("halted_keys", "warning")]),
        (facts(changes={"dead": 3}, newest_dead_s=3_600.0), [("dead_letters_growing", "warning")]),
        (facts(changes={"dead": 3}, newest_dead_s=3_601.0), []),
    ],
)
def test_a_group(group: GroupFacts, found: list[tuple[str, str]]) -> None:
    assert [(one.code, one.severity) for one in check_group(group)] == found


@pytest.mark.parametrize(
    "group",
    [
        facts(changes=BEHIND),
        facts(changes=HELD, stuck=5),
        facts(changes=BEHIND | {"paused": True}, workers=1),
        facts(changes={"halted_keys": 1}, workers=1),
        facts(changes={"dead": 3}, newest_dead_s=1.0),
        facts(changes=BEHIND | {"kind": "projection", "group": "totals.g3"}),
    ],
)
def test_the_commands_that_are_advised_are_understood(group: GroupFacts) -> None:
    for told in check_group(group):
        commands = re.findall(r"streamlib ([a-z].*?)(?=[,)]|$)", told.advice)
        assert commands
        for command in commands:
            parsed = CliRunner().invoke(main, [*command.split(), "--redis", "redis://a,b"])
            assert parsed.output.startswith("error: "), "what click does not understand begins with Usage"


def test_a_generation_of_a_view_is_not_removed_as_a_group() -> None:
    left = BEHIND | {"kind": "projection", "group": "totals.g3"}
    (told,) = check_group(facts(changes=left))
    assert "streamlib rebuild APP totals" in told.advice
    assert "groups rm" not in told.advice


def test_a_stranger_is_named_with_its_streams() -> None:
    told = check_stranger(Stranger("orders", "theirs", [f"orders.{number}" for number in range(4)]))
    assert (told.code, told.severity, told.where) == ("unregistered_group", "warning", "group theirs of orders")
    assert "orders.0, orders.1, orders.2, ..." in told.what


def known(namespace: str = "") -> Known:
    groups = {"orders": frozenset({"email", "totals", "totals.g3"}), "bills": frozenset[str]()}
    return Known(namespace, {"orders": 2, "bills": 1}, groups)


@pytest.mark.parametrize(
    ("key", "owner"),
    [
        ("{orders.0}:idem:email:o-1", None),
        ("{orders.1}:done:email:5:0", None),
        ("{orders.0}:view:totals:3:row:a:b", None),
        ("{orders.0}:owner:totals.g3", None),
        ("{bills}:producers", None),
        ("{bills}:agg:b-1", None),
        ("orders.0", None),
        ("streamlib:topics", None),
        ("streamlib:workers", None),
        ("streamlib:group:orders:email", None),
        ("{orders.2}:producers", "topic orders"),
        ("{orders}:dead:email", "topic orders"),
        ("{bills.0}:dead:email", "topic bills"),
        ("{old}:retry:email", "topic old"),
        ("{orders.0}:idem:gone:o-1", "group gone of orders"),
        ("{orders.0}:view:lost:1", "view lost of orders"),
        ("streamlib:group:orders:gone", "group gone of orders"),
        ("streamlib:limit:old:email", "group email of old"),
        # not ours
        ("{user1}:cart", None),
        ("{user 1}:idem:email:o-1", None),
        ("{old:retry:email", None),
        # another namespace's
        ("{shop:old}:retry:email", None),
        ("streamlib:shop:group:orders:gone", None),
    ],
)
def test_whose_a_key_is(key: str, owner: str | None) -> None:
    assert [orphan.owner for orphan in orphans_of([key.encode()], known())] == ([owner] if owner else [])


@pytest.mark.parametrize(
    ("key", "owner"),
    [
        ("{shop:orders.0}:dead:email", None),
        ("{shop:old}:dead:email", "topic old"),
        ("streamlib:shop:group:orders:gone", "group gone of orders"),
        ("streamlib:group:orders:gone", None),
        ("{old}:dead:email", None),
    ],
)
def test_whose_a_key_of_a_namespace_is(key: str, owner: str | None) -> None:
    assert [orphan.owner for orphan in orphans_of([key.encode()], known("shop"))] == ([owner] if owner else [])


def test_one_finding_for_each_lost_owner() -> None:
    found = check_keys(
        {
            "topic old": Lost(Counter(producers=1, again=2), "{old}:producers"),
            "group gone of orders": Lost(Counter(idem=1), "{orders.0}:idem:gone:1"),
        }
    )
    assert [(one.where, one.severity) for one in found] == [
        ("group gone of orders", "warning"),
        ("topic old", "danger"),
    ]
    assert found[1].what.startswith("3 keys (2 again, 1 producers), '{old}:producers' for one")


def test_many_lost_owners_are_counted() -> None:
    found = check_keys({f"topic t{number:02}": Lost(Counter(dedup=1), "key") for number in range(25)})
    assert len(found) == MOST_TOLD + 1
    assert found[-1].what.startswith("5 more")
