"""Event sourcing and CQRS together: products are kept as events, the catalogue is what customers search.

Use it where both pay: stock has to be right at every moment (the write side), and people look for it by name and by
price (the read side). The catalogue can be folded again from the events at any time, with other columns or indexes.
"""

from __future__ import annotations

from decimal import Decimal

from msgspec.structs import replace

from streamlib import Aggregate, Command, Event, Ordered, Prefix, ReadModel, Reject, applies
from workers.shop.app import app

# -- what happens ----------------------------------------------------------------------------------------------------


class ProductCreated(Event):
    product_id: str
    name: str
    price: Decimal


class PriceChanged(Event):
    product_id: str
    price: Decimal


class StockChanged(Event):
    """So many came (or left, below zero)."""

    product_id: str
    by: int


products = app.topic("products", ProductCreated, PriceChanged, StockChanged, key="product_id", partitions=2)


# -- the write side --------------------------------------------------------------------------------------------------


class Product(Aggregate):
    name: str = ""
    price: Decimal = Decimal(0)
    stock: int = 0

    def create(self, name: str, price: Decimal) -> None:
        if self.name:
            raise Reject(f"product {self.id} exists already: {self.name}")
        if not name:
            raise Reject(f"product {self.id} needs a name")
        self._check(price)
        self.record(ProductCreated(product_id=self.id, name=name, price=price))

    def change_price(self, price: Decimal) -> None:
        self._check(price)
        self.record(PriceChanged(product_id=self.id, price=price))

    def change_stock(self, by: int) -> None:
        if not by:
            raise Reject(f"product {self.id}: none are to come and none to leave")
        if self.stock + by < 0:
            raise Reject(f"product {self.id}: {-by} are to leave, but only {self.stock} are there")
        self.record(StockChanged(product_id=self.id, by=by))

    def _check(self, price: Decimal) -> None:
        if price <= 0:
            raise Reject(f"product {self.id}: a price of {price}")

    @applies(ProductCreated)
    def _created(self, event: ProductCreated) -> None:
        self.name, self.price = event.name, event.price

    @applies(PriceChanged)
    def _price_changed(self, event: PriceChanged) -> None:
        self.price = event.price

    @applies(StockChanged)
    def _stock_changed(self, event: StockChanged) -> None:
        self.stock += event.by


warehouse = app.repository(Product, products, snapshot_every=100)


class CreateProduct(Command):
    product_id: str
    name: str
    price: Decimal


class ChangePrice(Command):
    product_id: str
    price: Decimal


class ChangeStock(Command):
    product_id: str
    by: int


@app.command_handler
async def create_product(command: CreateProduct) -> None:
    product = await warehouse.load_or_new(command.product_id)
    product.create(command.name, command.price)
    await warehouse.save(product)


@app.command_handler
async def change_price(command: ChangePrice) -> None:
    await warehouse.edit(command.product_id, lambda product: product.change_price(command.price))


@app.command_handler
async def change_stock(command: ChangeStock) -> int:
    """Returns how many are there now."""
    product = await warehouse.load(command.product_id)
    product.change_stock(command.by)
    await warehouse.save(product)
    return product.stock


# -- the read side ---------------------------------------------------------------------------------------------------


class CatalogueRow(ReadModel):
    product_id: str
    name: str
    price: Decimal
    stock: int = 0


catalogue = app.projection(
    "catalogue", products, CatalogueRow, key="product_id", indexes=[Prefix("name"), Ordered("price")]
)


@catalogue.on(ProductCreated)
def created(row: CatalogueRow | None, event: ProductCreated) -> CatalogueRow:
    return CatalogueRow(product_id=event.product_id, name=event.name, price=event.price)


@catalogue.on(PriceChanged)
def price_changed(row: CatalogueRow | None, event: PriceChanged) -> CatalogueRow | None:
    return row and replace(row, price=event.price)


@catalogue.on(StockChanged)
def stock_changed(row: CatalogueRow | None, event: StockChanged) -> CatalogueRow | None:
    return row and replace(row, stock=row.stock + event.by)
