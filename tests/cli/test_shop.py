"""`streamlib run workers.shop:app --burst` on the seed gives the read models that are written down here by hand."""

import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis

from streamlib import Page
from tests.cli.conftest import command_line, environment
from tests.helpers.delivering import dead_letters
from tests.helpers.shop import open_shop
from workers.shop.accounts import bank
from workers.shop.idempotency import Receipt, receipts
from workers.shop.notifications import OUTBOX_ENV, CountryRow, Profile, countries, profiles
from workers.shop.orders import OrderRow, order_view
from workers.shop.products import CatalogueRow, catalogue

PROFILES = [
    Profile(user_id="u-1", name="Ada Lovelace", country="GB"),
    Profile(user_id="u-2", name="Alan Turing", country="GB"),
    Profile(user_id="u-3", name="Grace Hopper", country="US"),
    Profile(user_id="u-4", name="Edsger Dijkstra", country="NL"),
    Profile(user_id="u-5", name="Adele Goldberg", country="US"),
]
COUNTRIES = [CountryRow(country="GB", users=2), CountryRow(country="NL", users=1), CountryRow(country="US", users=2)]
RECEIPTS = [
    Receipt(payment_id="p-1", amount=Decimal("120.00"), original_id="webhook-1", times=1),
    Receipt(payment_id="p-2", amount=Decimal("35.50"), original_id="webhook-2", times=1),
]
BALANCES = {
    "acc-1": Decimal("75.50"),  # 100.00 - 30.00, and 5.50 by a worker
    "acc-2": Decimal("10.00"),  # the withdrawal of 500.00 is refused
}
ORDERS = [
    OrderRow(order_id="o-1", customer_id="u-1", total=Decimal("120.00"), status="shipped"),
    OrderRow(order_id="o-2", customer_id="u-2", total=Decimal("35.50"), status="paid"),
    OrderRow(order_id="o-3", customer_id="u-1", total=Decimal("900.00"), status="paid"),  # by a worker
    OrderRow(order_id="o-4", customer_id="u-3", total=Decimal("15.00"), status="cancelled"),  # shipping it is refused
]
CATALOGUE = [
    CatalogueRow(product_id="pr-1", name="Mechanical keyboard", price=Decimal("79.00"), stock=7),  # 10 - 3
    CatalogueRow(product_id="pr-2", name="mechanical pencil", price=Decimal("12.50"), stock=100),
    CatalogueRow(product_id="pr-3", name="Monitor arm", price=Decimal("39.90"), stock=5),  # both by a worker
]
MAILED = ["seed-u-1", "seed-u-2", "seed-u-3", "seed-u-4"]
REFUSED = {
    "Overdraft: account acc-2: 500.00 is more than its balance of 10.00",
    "Reject: order o-4 is cancelled: next comes nothing, not shipped",
}


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


def run(command: list[str], redis_url: str, outbox: Path) -> str:
    """The standard output of a process that must end well."""
    env = environment({"STREAMLIB_REDIS_URL": redis_url, OUTBOX_ENV: str(outbox)})
    done = subprocess.run(command, cwd=outbox.parent, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def seed(redis_url: str, outbox: Path) -> None:
    run([sys.executable, "-m", "workers.shop.seed"], redis_url, outbox)


def burst(redis_url: str, outbox: Path) -> None:
    run(command_line(["run", "workers.shop:app", "--burst", "--no-http"]), redis_url, outbox)


async def assert_as_written_down(redis_url: str, client: redis.Redis, outbox: Path) -> None:
    async with open_shop(redis_url):
        read_models: list[tuple[Page[Any], list[Any]]] = [
            (await profiles.rows(), PROFILES),
            (await countries.rows(), COUNTRIES),
            (await receipts.rows(), RECEIPTS),
            (await order_view.rows(), ORDERS),
            (await catalogue.rows(), CATALOGUE),
        ]
        for rows, by_hand in read_models:
            assert rows == by_hand
        assert {account_id: (await bank.load(account_id)).balance for account_id in BALANCES} == BALANCES
    assert sorted(file.stem.rpartition(":")[2] for file in outbox.iterdir()) == MAILED
    assert {letter["dl-error"] for letter in dead_letters(client, "shop-commands", "commands")} == REFUSED


async def test_the_seed_gives_the_read_models_that_are_computed_by_hand(
    redis_url: str, client: redis.Redis, outbox: Path
) -> None:
    seed(redis_url, outbox)
    burst(redis_url, outbox)
    await assert_as_written_down(redis_url, client, outbox)


async def test_sown_twice_nothing_is_different(redis_url: str, client: redis.Redis, outbox: Path) -> None:
    seed(redis_url, outbox)
    seed(redis_url, outbox)
    burst(redis_url, outbox)
    seed(redis_url, outbox)
    burst(redis_url, outbox)
    await assert_as_written_down(redis_url, client, outbox)
    assert len(dead_letters(client, "shop-commands", "commands")) == len(REFUSED)
