"""Questions to a view give what a plain search over all rows would give: exact, ordered, bounded."""

import datetime as dt
import random
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from typing import Any

import pytest
import redis

from streamlib.errors import SchemaError, WrongKeyType
from streamlib.event import Event, Registry
from streamlib.keys import Keys
from streamlib.message import Position
from streamlib.read_model import Exact, Ordered, Prefix, ReadModel
from streamlib.redisio.connection import RedisDoor
from streamlib.redisio.indexes import prefix_text
from streamlib.settings import RedisSettings, Settings, WorkerSettings
from streamlib.topic import TopicSpec
from streamlib.worker.projection import Projection
from tests.helpers.projecting import Projecting, stopping

MOMENT = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)


class Item(ReadModel):
    sku: str
    name: str | None = None
    price: Decimal | None = None
    stock: int = 0
    weight: float = 0.0
    since: dt.datetime = MOMENT
    day: dt.date = dt.date(2024, 5, 1)
    on_sale: bool = False


class Put(Event):
    sku: str
    item: dict[str, Any]


class Shop:
    """A view of items, projected in one go."""

    def __init__(self, url: str, partitions: int) -> None:
        self.settings = Settings(redis=RedisSettings(url=url), worker=WorkerSettings(block_ms=50))
        self.door = RedisDoor.open(self.settings.redis)
        self.keys = Keys()
        self.topic = TopicSpec(name="items", registry=Registry([Put]), key="sku", partitions=partitions)
        self.view = Projection(
            "shelf",
            self.topic,
            Item,
            key="sku",
            indexes=[
                Exact("name"), Exact("stock"), Exact("on_sale"), Exact("price"), Ordered("price"),
                Ordered("stock"), Ordered("weight"), Ordered("since"), Ordered("day"), Prefix("name"),
            ],
            keys=lambda: self.keys,
            redis=lambda: self.door,
        )  # fmt: skip
        self.items: dict[str, Item] = {}
        self.view.on(Put)(lambda row, event: self.items[event.sku])

    async def put(self, client: redis.Redis, items: Sequence[Item]) -> None:
        self.items |= {item.sku: item for item in items}
        last: dict[int, Position] = {}
        for item in items:
            message = self.topic.message(Put(sku=item.sku, item={}))
            partition = self.topic.partition_of(message)
            fields = self.topic.codec.write(message)
            stream = self.keys.stream("items", partition, self.topic.partitions).stream
            entry_id: Any = client.xadd(stream, dict(zip(fields[::2], fields[1::2], strict=True)))
            last[partition] = Position("items", partition, entry_id.decode())
        projector = Projecting(self.view, self.door, self.keys, self.settings, "w")
        async with stopping(projector):
            for position in last.values():
                await self.view.wait_for(position, timeout=30)

    def between(self, field: str, low: Any, high: Any, limit: int) -> list[Item]:
        """The same by plain search."""
        fitting = [
            item
            for item in self.items.values()
            if (value := getattr(item, field)) is not None
            and (low is None or low <= value)
            and (high is None or value <= high)
        ]
        return sorted(fitting, key=lambda item: (getattr(item, field), item.sku))[:limit]


@pytest.fixture(params=[1, 3])
async def shop(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Shop]:
    shop = Shop(redis_url, request.param)
    yield shop
    await shop.door.close()


async def test_between_is_exact_where_doubles_are_not(shop: Shop, client: redis.Redis) -> None:
    edge = 2**53
    ints = [edge - 1, edge, edge + 1, edge + 2, edge + 3, -edge - 1, 2**63, 2**63 - 1, 2**64 - 1, 0]
    prices = ["0.1", "0.10000000000000000001", "0.1000000000000000000", "0.09999999999999999999", "1E+300", "-1E-400"]
    items = [Item(sku=f"i{n}", stock=stock) for n, stock in enumerate(ints)]
    items += [Item(sku=f"p{n}", price=Decimal(price)) for n, price in enumerate(prices)]
    await shop.put(client, items)
    for low in ints:
        for high in ints:
            for limit in (1, 2, 100):
                assert await shop.view.between("stock", low, high, limit=limit) == shop.between(
                    "stock", low, high, limit
                )
    for one in map(Decimal, prices):
        assert await shop.view.between("price", one, one) == shop.between("price", one, one, 100)
        assert await shop.view.between("price", None, one) == shop.between("price", None, one, 100)
    assert await shop.view.between("price", Decimal("0.1"), None, limit=2) == shop.between(
        "price", Decimal("0.1"), None, 2
    )


async def test_between_pages_over_many_equal_values(shop: Shop, client: redis.Redis) -> None:
    rng = random.Random(7)
    items = [
        Item(
            sku=f"{n:04}",
            price=Decimal(rng.choice(["1", "1.0", "2.50", "1.00000000000000000001"])),
            stock=rng.choice([1, 1, 1, 2]),
            weight=rng.random(),
            since=MOMENT + dt.timedelta(microseconds=rng.randrange(5)),
            day=dt.date(2024, 1, rng.randrange(1, 4)),
        )
        for n in range(2000)
    ]
    rng.shuffle(items)
    await shop.put(client, items)
    bounds: list[tuple[str, Any, Any]] = [
        ("price", Decimal(1), Decimal(3)),
        ("price", Decimal("1.00000000000000000001"), Decimal("1.00000000000000000001")),
        ("stock", 1, 2),
        ("stock", None, None),
        ("weight", 0.25, 0.75),
        ("since", MOMENT, MOMENT + dt.timedelta(microseconds=2)),
        ("day", dt.date(2024, 1, 2), None),
    ]
    for field, low, high in bounds:
        for limit in (1, 10, 700, 5000):
            found = await shop.view.between(field, low, high, limit=limit)
            assert found == shop.between(field, low, high, limit)


async def test_find_and_count_by_several_values(shop: Shop, client: redis.Redis) -> None:
    rng = random.Random(3)
    items = [
        Item(sku=f"{n:03}", name=rng.choice(["x", "y", None]), stock=rng.randrange(3), on_sale=rng.random() < 0.3)
        for n in range(700)
    ]
    await shop.put(client, items)
    for name in ("x", None):
        for stock in (0, 2, 9):
            wanted = [item for item in items if (item.name, item.stock, item.on_sale) == (name, stock, True)]
            assert await shop.view.find(name=name, stock=stock, on_sale=True) == wanted[:100]
            assert await shop.view.count(name=name, stock=stock, on_sale=True) == len(wanted)
    everything = await shop.view.find(on_sale=False, limit=1000)
    assert len(everything) == await shop.view.count(on_sale=False)
    assert everything.cursor is None
    assert await shop.view.count() == 700


async def test_equal_values_are_found_however_they_are_written(shop: Shop, client: redis.Redis) -> None:
    await shop.put(client, [Item(sku="a", price=Decimal("9.90")), Item(sku="b", name="n" * 300)])
    assert [row.sku for row in await shop.view.find(price=Decimal("9.9"))] == ["a"]
    assert [row.price for row in await shop.view.find(price="9.900")] == [Decimal("9.90")]
    assert [row.sku for row in await shop.view.find(name="n" * 300)] == ["b"]
    assert await shop.view.find(name="n" * 301) == []


async def test_prefix_ignores_case_and_composition_and_pages(shop: Shop, client: redis.Redis) -> None:
    names = ["École", "E\u0301cole normale", "ecole", "ÉCHO", "straße", "STRASSE 5", "nul\x00in", "", "😀 ok"]
    items = [Item(sku=f"n{n}", name=name) for n, name in enumerate(names)]
    items += [Item(sku=f"m{n:04}", name=f"many {n % 7}") for n in range(1200)]
    items.append(Item(sku="none"))
    await shop.put(client, items)

    def by_search(text: str, limit: int) -> list[Item]:
        found = [i for i in items if i.name is not None and prefix_text(i.name).startswith(prefix_text(text))]
        return sorted(found, key=lambda i: (prefix_text(i.name or "").encode(), i.sku))[:limit]

    for text in ("éc", "ÉCO", "Strass", "MANY", "nul\x00", "😀", "zzz", "many 3"):
        for limit in (1, 5, 100, 1000):
            assert await shop.view.prefix("name", text, limit=limit) == by_search(text, limit)
    assert len(await shop.view.prefix("name", "", limit=5000)) == len(items) - 1


async def test_get_many_keeps_order_and_gaps(shop: Shop, client: redis.Redis) -> None:
    await shop.put(client, [Item(sku=str(n)) for n in range(600)])
    found = await shop.view.get_many([str(n) for n in (599, 0, 9999, 0)])
    assert [row.sku if row else None for row in found] == ["599", "0", None, "0"]
    assert await shop.view.get(7) == Item(sku="7")
    assert await shop.view.get_many([]) == []


async def test_questions_without_an_index_name_those_that_exist(shop: Shop) -> None:
    with pytest.raises(SchemaError, match="'weight' has no Exact index; fields that have one: name, stock"):
        await shop.view.find(weight=1.0)
    with pytest.raises(SchemaError, match="'name' has no Ordered index"):
        await shop.view.between("name", "a", "b")
    with pytest.raises(SchemaError, match="'stock' has no Prefix index"):
        await shop.view.prefix("stock", "1")
    with pytest.raises(SchemaError, match="find rows by what value"):
        await shop.view.find()
    with pytest.raises(SchemaError, match=r"Item\.stock cannot hold 'many'"):
        await shop.view.find(stock="many")
    with pytest.raises(SchemaError, match=r"Item\.weight is nan"):
        await shop.view.between("weight", float("nan"), 1.0)
    with pytest.raises(ValueError, match="reads topic 'items'"):
        await shop.view.wait_for(Position("others", 0, "1-0"), timeout=1)


@pytest.mark.allow_keys("*:view:*")
async def test_keys_of_another_type_are_named(shop: Shop, client: redis.Redis) -> None:
    await shop.put(client, [Item(sku="a", name="x")])
    for key in client.keys("*:row:a") + client.keys("*:by:name"):
        client.delete(key)
        client.set(key, "mine")
    with pytest.raises(SchemaError, match="row:a is a string, not a hash"):
        await shop.view.get("a")
    with pytest.raises(WrongKeyType):
        await shop.view.prefix("name", "x")
