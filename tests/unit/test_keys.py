"""Key names: those of the agreement, and all of a partition's keys in one slot whatever users call things."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from streamlib.errors import DeclarationError
from streamlib.keys import Keys, StreamKeys, check_name, check_namespace

NAMES = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,62}[A-Za-z_-]", fullmatch=True)


def test_the_keys_of_a_topic_with_one_partition() -> None:
    keys = Keys().stream("orders", 0, 1)
    assert keys.stream == "orders"
    assert keys.idem("email", "e-1") == "{orders}:idem:email:e-1"
    assert keys.retry("email") == "{orders}:retry:email"
    assert keys.retry_body("email") == "{orders}:retrybody:email"
    assert keys.again("email") == "{orders}:again:email"
    assert keys.dead("email") == "{orders}:dead:email"
    assert keys.suspect("email") == "{orders}:suspect:email"
    assert keys.replay("email") == "{orders}:replay:email"
    assert keys.producers() == "{orders}:producers"
    assert keys.dedup("e-1") == "{orders}:dedup:e-1"
    assert keys.owner("email") == "{orders}:owner:email"
    assert keys.view("list", 2) == "{orders}:view:list:2"
    assert keys.row("list", 2, "o-1") == "{orders}:view:list:2:row:o-1"
    assert keys.exact("list", 2, "status", "new") == "{orders}:view:list:2:by:status:new"
    assert keys.sorted_by("list", 2, "total") == "{orders}:view:list:2:by:total"


def test_partitions_are_numbered_and_a_namespace_stands_inside_the_tag() -> None:
    keys = Keys("shop").stream("orders", 7, 8)
    assert keys.stream == "shop:orders.7"
    assert keys.dead("email") == "{shop:orders.7}:dead:email"
    assert Keys("shop").stream("orders", 0, 1).stream == "shop:orders"


def test_the_registry_is_ours_alone() -> None:
    assert Keys().topics() == "streamlib:topics"
    assert Keys().views() == "streamlib:views"
    assert Keys().workers() == "streamlib:workers"
    assert Keys().group("orders", "email") == "streamlib:group:orders:email"
    assert Keys().replay("orders", "email") == "streamlib:replay:orders:email"
    assert Keys("shop").topics() == "streamlib:shop:topics"
    assert Keys("shop").group("orders", "email") == "streamlib:shop:group:orders:email"


@given(
    namespace=st.just("") | NAMES.filter(lambda name: name != "streamlib"),
    topic=NAMES,
    partition=st.integers(0, 3),
    group=NAMES,
    free_text=st.text(min_size=1, max_size=60) | st.sampled_from(["{", "}", "{}", "{other}", "}{", "{orders}"]),
)
def test_every_key_of_a_partition_lies_in_its_slot(
    namespace: str, topic: str, partition: int, group: str, free_text: str
) -> None:
    keys = Keys(namespace).stream(topic, partition, 4)
    every = [
        keys.idem(group, free_text), keys.retry(group), keys.retry_body(group), keys.again(group),
        keys.dead(group), keys.suspect(group), keys.producers(), keys.dedup(free_text), keys.owner(group),
        keys.view(group, 1), keys.row(group, 1, free_text), keys.exact(group, 1, "field", free_text),
        keys.sorted_by(group, 1, "field"), keys.replay(group),
    ]  # fmt: skip
    assert {key_slot(key.encode()) for key in every} == {key_slot(keys.stream.encode())}


@given(names=st.sets(NAMES, min_size=2, max_size=2), event_id=st.text(min_size=1, max_size=20))
def test_two_groups_never_share_a_key(names: set[str], event_id: str) -> None:
    keys, (one, other) = StreamKeys("orders"), sorted(names)
    for make in (keys.retry, keys.retry_body, keys.again, keys.dead, keys.suspect, keys.owner, keys.replay):
        assert make(one) != make(other)
    assert keys.idem(one, event_id) != keys.idem(other, event_id)


@pytest.mark.parametrize("name", ["orders", "a", "A.b_c-9", "x" * 64, "v1.2x", "2024"])
def test_names_that_are_allowed(name: str) -> None:
    assert check_name("topic", name) == name


@pytest.mark.parametrize(
    "name",
    ["", "x" * 65, "a b", "a:b", "a{b", "a/b", "naïve", "a\n", "orders\n", "a}", "a*", "a?", "[a]", "a\\", "\x1b[2J"],
)
def test_names_that_would_break_a_key_are_refused(name: str) -> None:
    with pytest.raises(DeclarationError, match="a name is 1 to 64 of the characters"):
        check_name("topic", name)


@pytest.mark.parametrize("name", ["orders.0", "orders.12", "a.b.3"])
def test_names_that_look_like_a_partition_are_refused(name: str) -> None:
    with pytest.raises(DeclarationError, match=r"must not end in \.<digits>"):
        check_name("group", name)


def test_the_namespace_of_the_registry_is_taken() -> None:
    assert check_namespace("") == ""
    assert check_namespace("shop") == "shop"
    for bad in ("streamlib", "shop.1", "a:b", "a{"):
        with pytest.raises(DeclarationError, match="namespace"):
            Keys(bad)
