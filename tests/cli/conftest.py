"""The command line as a user has it: a process, its exit code, what it printed where."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from tests.helpers.workers import ROOT

SHOP = """
import asyncio
import os
import time
from streamlib import App, Context, Event, Reject

app = App("shop")

class OrderCreated(Event):
    order_id: str
    total: int = 0

class OrderPaid(Event, version=2):
    order_id: str

orders = app.topic("orders", OrderCreated, OrderPaid, key="order_id", partitions={partitions})

@app.handler(orders, group="email")
async def send(event: OrderCreated, ctx: Context) -> None:
    if event.total < 0:
        raise Reject(f"negative total of {event.order_id}")
    if event.total == 1_000_000:
        await asyncio.sleep(600)
    if event.total == 2_000_000:
        open("blocked", "w").close()
        time.sleep(600)
"""

BANK = """
import asyncio
import os
from streamlib import App, Event, ReadModel, Reject, Retry

app = App("bank")

class Moved(Event):
    account: str
    n: int = 0

moves = app.topic("moves", Moved, key="account", partitions=2)

@app.handler(moves, group="ledger", ordering="key", on_dead="block", retry=Retry(max_attempts=1))
async def book(event: Moved) -> None:
    if event.n < 0 and not os.path.exists("mended"):
        raise ValueError(f"{event.account} is overdrawn")

@app.handler(moves, group="audit", retry=Retry(max_attempts=5, base=3600, cap=3600))
async def look(event: Moved) -> None:
    if event.n == 13:
        raise ValueError("in an hour")
    if event.n == 14:
        raise Reject("never")
    if event.n == 15:
        await asyncio.sleep(600)

class Balance(ReadModel):
    account: str
    total: int

balances = app.projection("balances", moves, Balance, key="account")

@balances.on(Moved)
def add(row: Balance | None, event: Moved) -> Balance:
    return Balance(account=event.account, total=(row.total if row else 0) + event.n)
"""
"""A handler group, an ordered group and a projection on two partitions; n says how an event ends."""


class Result(Struct, frozen=True):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Result]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory with shop.py, whose app is `shop:app`."""
    (tmp_path / "shop.py").write_text(SHOP.replace("{partitions}", "2"))
    return tmp_path


@pytest.fixture
def bank(shop: Path) -> Path:
    """The directory of `cli`, with bank.py, whose app is `bank:app`."""
    (shop / "bank.py").write_text(BANK)
    return shop


@pytest.fixture
def move(cli: Cli, bank: Path, redis_url: str) -> Callable[..., None]:
    """`move(a=1, b=-1)` publishes one event for each account."""

    def publish(**accounts: int) -> None:
        lines = (json.dumps({"type": "Moved", "data": {"account": a, "n": n}}) for a, n in accounts.items())
        done = cli("publish", "bank:app", "moves", "--redis", redis_url, stdin="\n".join(lines))
        assert done.code == 0, done.err

    return publish


@pytest.fixture
def cli(shop: Path) -> Cli:
    """`cli("info", "--json", env={...}, stdin="...")` runs `streamlib info --json` in the shop's directory."""

    def run(*args: str, env: dict[str, str] | None = None, stdin: str = "", cwd: Path = shop) -> Result:
        done = subprocess.run(
            command_line(args), cwd=cwd, env=environment(env), input=stdin, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr)

    return run


def command_line(args: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "streamlib", *args]


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings of its own; Redis is tried for a second, not half a minute."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIB_")}
    own = {"PYTHONPATH": str(ROOT), "STREAMLIB_REDIS_RETRY_S": "1", "STREAMLIB_REDIS_TIMEOUT_S": "2"}
    return inherited | own | (more or {})
