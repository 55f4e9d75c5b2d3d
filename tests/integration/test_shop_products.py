"""The shop's products: events decide what is in stock, the catalogue is searched by name and by price."""

import asyncio
from collections.abc import Sequence
from decimal import Decimal

import pytest
import redis

from streamlib import Command, Reject
from streamlib.errors import NotFound
from tests.helpers.delivering import burst
from tests.helpers.shop import everything, open_shop
from workers.shop.products import (
    CatalogueRow,
    ChangePrice,
    ChangeStock,
    CreateProduct,
    catalogue,
    warehouse,
)


def create(n: int, name: str, price: str) -> CreateProduct:
    return CreateProduct(product_id=f"pr-{n}", name=name, price=Decimal(price))


def price(n: int, price: str) -> ChangePrice:
    return ChangePrice(product_id=f"pr-{n}", price=Decimal(price))


def stock(n: int, by: int) -> ChangeStock:
    return ChangeStock(product_id=f"pr-{n}", by=by)


def ids(rows: Sequence[CatalogueRow]) -> list[str]:
    return [row.product_id for row in rows]


async def test_the_catalogue_is_searched_by_name_and_by_price(redis_url: str) -> None:
    async with open_shop(redis_url) as app:
        for command in (
            create(1, "Mechanical keyboard", "89.00"),
            create(2, "mechanical pencil", "12.50"),
            create(3, "Monitor arm", "45.00"),
            create(4, "Mouse", "45.01"),
            price(1, "44.99"),
            stock(1, 10),
            stock(1, -3),
        ):
            await app.dispatch(command)
        assert await burst(app, ["catalogue"]) == 0
        keyboard = CatalogueRow(product_id="pr-1", name="Mechanical keyboard", price=Decimal("44.99"), stock=7)
        assert await catalogue.get("pr-1") == keyboard
        assert ids(await catalogue.prefix("name", "MECH")) == ["pr-1", "pr-2"]
        assert ids(await catalogue.between("price", 40, 45)) == ["pr-1", "pr-3"]
        assert ids(await catalogue.between("price", 80, 100)) == [], "the old price finds nothing any more"


async def test_both_sides_tell_the_same(redis_url: str) -> None:
    async with open_shop(redis_url) as app:
        for n in range(1, 6):
            await app.dispatch(create(n, f"Product {n}", f"{n}.50"))
            for _ in range(n):
                await app.dispatch(stock(n, 10))
            await app.dispatch(price(n, f"{n}.75"))
        assert await burst(app, ["catalogue"]) == 0
        products = [await warehouse.load(f"pr-{n}") for n in range(1, 6)]
        assert await catalogue.rows() == [
            CatalogueRow(product_id=product.id, name=product.name, price=product.price, stock=product.stock)
            for product in products
        ]
        assert [product.stock for product in products] == [10, 20, 30, 40, 50]


async def test_stock_that_many_take_at_once_is_given_out_once(redis_url: str) -> None:
    async with open_shop(redis_url) as app:
        await app.dispatch(create(1, "Mouse", "45"))
        await app.dispatch(stock(1, 5))
        answers = await asyncio.gather(*(app.dispatch(stock(1, -2)) for _ in range(6)), return_exceptions=True)
        assert sum(isinstance(answer, Reject) for answer in answers) == 4
        assert sorted(answer.value for answer in answers if not isinstance(answer, BaseException)) == [1, 3]
        assert (await warehouse.load("pr-1")).stock == 1


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (create(1, "Mouse", "5"), "product pr-1 exists already: Mouse"),
        (create(2, "", "5"), "product pr-2 needs a name"),
        (create(2, "Mouse", "0"), "product pr-2: a price of 0"),
        (price(1, "-1"), "product pr-1: a price of -1"),
        (price(2, "1"), "Product 'pr-2' does not exist"),
        (stock(1, -1), "product pr-1: 1 are to leave, but only 0 are there"),
        (stock(1, 0), "product pr-1: none are to come and none to leave"),
    ],
)
async def test_what_is_refused_writes_nothing(redis_url: str, client: redis.Redis, command: Command, why: str) -> None:
    async with open_shop(redis_url) as app:
        await app.dispatch(create(1, "Mouse", "45"))
        before = everything(client)
        with pytest.raises((Reject, NotFound), match=why):
            await app.dispatch(command)
        assert everything(client) == before
