"""Pages of a view, put together, are what one search over all rows gives; also while other rows change."""

import random
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from msgspec.structs import replace

from streamlib.errors import DeclarationError, SchemaError
from streamlib.keys import Keys
from streamlib.read_model import Exact, Ordered, Page, Prefix, ReadModel
from streamlib.redisio.commits import INEXACT
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.indexes import Indexes, ViewKeys, prefix_text
from streamlib.redisio.read_model import ViewReader, partition_of
from streamlib.redisio.rows import RowCodec
from streamlib.settings import RedisSettings
from tests.helpers.index_entries import entries

TOPIC, VIEW = "goods", "shelf"
URL_SAFE = re.compile(r"[A-Za-z0-9_-]+")


class Good(ReadModel):
    sku: str
    name: str | None = None
    price: Decimal | None = None
    stock: int = 0
    kind: str = "a"


CODEC = RowCodec(Good)
INDEXES = Indexes(CODEC, [Exact("kind"), Exact("stock"), Ordered("price"), Ordered("stock"), Prefix("name")])
Ask = Callable[[str | None], Awaitable[Page[Good]]]


class Shelf:
    """A view whose rows are written without a worker, as its commits write them; it remembers what it holds."""

    def __init__(self, client: redis.Redis, door: RedisDoor, partitions: int) -> None:
        self.goods: dict[str, Good] = {}
        self._client = client
        self._parts = [ViewKeys(Keys().stream(TOPIC, p, partitions), VIEW, 1) for p in range(partitions)]
        self.view = ViewReader(lambda: door, Keys, TOPIC, partitions, VIEW, CODEC, INDEXES)

    def put(self, *goods: Good) -> None:
        for good in goods:
            self._write(good.sku, good)

    def remove(self, sku: str) -> None:
        self._write(sku, None)

    def _write(self, sku: str, good: Good | None) -> None:
        keys = self._parts[partition_of(sku, len(self._parts))]
        before = self.goods.pop(sku, None)
        with self._client.pipeline(transaction=True) as tx:
            for index, (member, _) in entries(INDEXES, keys, sku, before).items() if before else ():
                tx.zrem(index, member)
            tx.delete(keys.row(sku))
            if good is not None:
                self.goods[sku] = good
                tx.hset(keys.row(sku), mapping=CODEC.encode(good))  # type: ignore[arg-type]
                for index, (member, score) in entries(INDEXES, keys, sku, good).items():
                    tx.zadd(index, {member: score})
                for field in INDEXES.inexact(good):
                    tx.hset(keys.head, f"{INEXACT}{field}", 1)
            tx.execute()

    # -- the same questions by plain search -------------------------------------------------------------------------

    def rows(self) -> list[Good]:
        return sorted(self.goods.values(), key=lambda good: good.sku.encode())

    def between(self, field: str, low: Any, high: Any) -> list[Good]:
        def is_inside(value: Any) -> bool:
            return value is not None and (low is None or low <= value) and (high is None or value <= high)

        fitting = [good for good in self.rows() if is_inside(getattr(good, field))]
        return sorted(fitting, key=lambda good: getattr(good, field))

    def prefix(self, text: str) -> list[Good]:
        fitting = [g for g in self.rows() if g.name is not None and prefix_text(g.name).startswith(prefix_text(text))]
        return sorted(fitting, key=lambda good: prefix_text(good.name or "").encode())


@pytest.fixture
async def door(redis_url: str) -> AsyncIterator[RedisDoor]:
    door = RedisDoor.open(RedisSettings(url=redis_url))
    yield door
    await door.close()


async def all_pages(ask: Ask, limit: int) -> list[Good]:
    """Every page but the last is full, none is empty (unless it is the only one), every cursor fits into a URL."""
    rows: list[Good] = []
    cursor = None
    while True:
        page = await ask(cursor)
        rows += page
        if page.cursor is None:
            assert len(page) <= limit
            assert page or cursor is None
            return rows
        assert len(page) == limit
        assert URL_SAFE.fullmatch(page.cursor)
        cursor = page.cursor


# -- pages equal one search -----------------------------------------------------------------------------------------

# 0.1 and its neighbours share one double; so do the last two.
PRICES = [Decimal(text) for text in ("0.1", "0.10000000000000000001", "0.1000", "0.2", "-3", "7E+400", "8E+400")]
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=4)
goods = st.builds(
    Good,
    sku=st.one_of(st.sampled_from("abcdefghij"), texts.filter(bool)),
    name=st.one_of(st.none(), st.sampled_from(["Éa", "e\u0301a", "eA", "straße", "STRASSE"]), texts),
    price=st.one_of(st.none(), st.sampled_from(PRICES), st.decimals(-9, 9, places=1)),
    stock=st.sampled_from([0, 1, 1, 1, 2**53, 2**53 + 1]),
    kind=st.sampled_from("aab"),
)
ends = st.one_of(st.none(), st.sampled_from(PRICES))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(
    st.lists(goods, max_size=40),
    st.sampled_from([1, 5]),
    st.integers(1, 9),
    ends,
    ends,
    st.sampled_from(["", "e", "Stras"]),
)
async def test_pages_put_together_equal_one_search(
    client: redis.Redis,
    door: RedisDoor,
    items: list[Good],
    partitions: int,
    limit: int,
    low: Decimal | None,
    high: Decimal | None,
    text: str,
) -> None:
    client.flushdb()
    shelf = Shelf(client, door, partitions)
    shelf.put(*items)
    view = shelf.view
    of_kind = [good for good in shelf.rows() if good.kind == "a"]
    assert await all_pages(lambda after: view.rows(limit, after), limit) == shelf.rows()
    assert await all_pages(lambda after: view.find({"kind": "a"}, limit, after), limit) == of_kind
    assert await all_pages(lambda after: view.find({"kind": "a", "stock": 1}, limit, after), limit) == [
        good for good in of_kind if good.stock == 1
    ]
    found = await all_pages(lambda after: view.between("price", low, high, limit, after), limit)
    assert found == shelf.between("price", low, high)
    found = await all_pages(lambda after: view.between("stock", 1, None, limit, after), limit)
    assert found == shelf.between("stock", 1, None)
    assert await all_pages(lambda after: view.prefix("name", text, limit, after), limit) == shelf.prefix(text)


# -- other rows change meanwhile ------------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [1, 5])
@pytest.mark.parametrize("prices", [[Decimal(n) for n in range(9)], [Decimal(f"0.{'0' * 20}{n}") for n in range(9)]])
async def test_rows_that_stay_come_exactly_once_while_others_move(
    client: redis.Redis, door: RedisDoor, partitions: int, prices: Sequence[Decimal]
) -> None:
    """The second list of prices has neighbours that share a double."""
    rng = random.Random(11)
    prices = [*prices, Decimal("0.1"), Decimal("0.10000000000000000001")]
    shelf = Shelf(client, door, partitions)
    staying = [Good(sku=f"s{n:03}", name=f"n{n % 5}", price=rng.choice(prices), stock=n % 3) for n in range(300)]
    moving = [Good(sku=f"m{n:03}", name="n1", price=rng.choice(prices)) for n in range(100)]
    shelf.put(*staying, *moving)
    stop = threading.Event()

    def move() -> None:
        while not stop.is_set():
            good = rng.choice(moving)
            if rng.random() < 0.2:
                shelf.remove(good.sku)
            else:
                shelf.put(replace(good, price=rng.choice(prices), name=f"n{rng.randrange(5)}", stock=rng.randrange(3)))

    mover = threading.Thread(target=move)
    mover.start()
    try:
        for limit in (1, 7, 150):
            for ask, place in _questions(shelf.view, limit):
                rows = await all_pages(ask, limit)
                assert [place(row) for row in rows] == sorted(map(place, rows)), "in order"
                stayed = [row for row in rows if row.sku.startswith("s")]
                assert stayed == sorted(staying, key=place), f"limit {limit}"
    finally:
        stop.set()
        mover.join()


def _questions(view: ViewReader[Good], limit: int) -> list[tuple[Ask, Callable[[Good], Any]]]:
    return [
        (lambda after: view.between("price", None, None, limit, after), lambda good: (good.price, good.sku)),
        (lambda after: view.prefix("name", "N", limit, after), lambda good: (good.name, good.sku)),
        (lambda after: view.rows(limit, after), lambda good: good.sku),
    ]


# -- what a page costs ----------------------------------------------------------------------------------------------


@pytest.mark.row(78)
async def test_a_page_reads_what_it_returns_wherever_it_begins(
    client: redis.Redis, door: RedisDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5,000 rows of one value on five partitions; every command stays within one slot."""
    shelf = Shelf(client, door, 5)
    shelf.put(*(Good(sku=f"g{n:04}", stock=7, name="same") for n in range(5000)))
    commands: list[tuple[tuple[Any, ...], Any]] = []
    plain = door.execute

    async def recording(*command: Any) -> Any:
        commands.append((command, await plain(*command)))
        return commands[-1][1]

    questions: list[Ask] = [
        lambda after: shelf.view.between("stock", 7, 7, 20, after),
        lambda after: shelf.view.find({"kind": "a", "stock": 7}, 20, after),
        lambda after: shelf.view.prefix("name", "s", 20, after),
        lambda after: shelf.view.rows(20, after),
    ]
    for ask in questions:
        cursor = None
        for _ in range(120):
            cursor = (await ask(cursor)).cursor
        commands.clear()
        with monkeypatch.context() as patched:
            patched.setattr(door, "execute", recording)
            page = await ask(cursor)
        assert [row.sku for row in page] == [f"g{n:04}" for n in range(2400, 2420)]
        assert sum(_rows_loaded(command) for command, _ in commands) <= 2 * 21
        assert sum(len(reply) for command, reply in commands if isinstance(reply, list)) <= 5 * 2 * 30 + 10
        assert len(commands) <= 5 * 4
        for command, _ in commands:
            assert len(set(re.findall(r"\{goods\.\d\}", repr(command)))) == 1, f"{command} spans partitions"


def _rows_loaded(command: tuple[Any, ...]) -> int:
    return sum(isinstance(part, str) and ":row:" in part for part in command)


# -- what is refused ------------------------------------------------------------------------------------------------


async def test_a_cursor_goes_on_with_its_own_question_only(client: redis.Redis, door: RedisDoor) -> None:
    shelf = Shelf(client, door, 1)
    shelf.put(*(Good(sku=f"g{n}", stock=n, name="n", price=Decimal(1)) for n in range(9)))
    view = shelf.view
    cursor = (await view.between("stock", 0, 8, 2, None)).cursor
    assert cursor is not None
    assert len(await view.between("stock", 0, 8, 5, cursor)) == 5, "another limit is the same question"
    by_kind = (await view.find({"kind": "a"}, 2, None)).cursor
    assert (await view.find({"kind": "a"}, 9, by_kind))[0].sku == "g2"
    others: list[Ask] = [
        lambda after: view.between("stock", 1, 8, 2, after),
        lambda after: view.between("price", 0, 8, 2, after),
        lambda after: view.find({"kind": "b"}, 2, after),
        lambda after: view.prefix("name", "n", 2, after),
        lambda after: view.rows(2, after),
    ]
    for ask in others:
        with pytest.raises(SchemaError, match=r"another question \(between\(\) of view 'shelf'"):
            await ask(cursor)
    with pytest.raises(SchemaError, match=r"another question \(find\(\)"):
        await view.rows(2, by_kind)


async def test_what_is_no_cursor_is_refused(client: redis.Redis, door: RedisDoor) -> None:
    shelf = Shelf(client, door, 1)
    shelf.put(*(Good(sku=f"g{n}", stock=n) for n in range(9)))
    cursor = (await shelf.view.between("stock", 0, 8, 2, None)).cursor
    assert cursor is not None
    wrong: list[Any] = ["", "?", "abc", cursor[:-1], cursor[:14], cursor + "=", f"{cursor}\n", 7, "é" * 20]
    for text in wrong:
        with pytest.raises(SchemaError, match=r"after= of between\(\) of view 'shelf' is no cursor"):
            await shelf.view.between("stock", 0, 8, 2, text)


async def test_limits_that_no_page_can_have_are_refused(client: redis.Redis, door: RedisDoor) -> None:
    view = Shelf(client, door, 1).view
    wrong: list[Any] = [0, -1, 10_001, True, 2.5, None, "5"]
    for limit in wrong:
        with pytest.raises(SchemaError, match="a page has 1 to 10,000 rows"):
            await view.rows(limit, None)
    assert await view.rows(10_000, None) == []


def test_a_field_that_find_could_not_tell_from_its_own_is_refused() -> None:
    class Account(ReadModel):
        limit: int

    with pytest.raises(DeclarationError, match=r"Exact\('limit'\) on Account.*paging"):
        Indexes(RowCodec(Account), [Exact("limit")])
    assert Indexes(RowCodec(Account), [Ordered("limit")]).ordered == ("limit",)
