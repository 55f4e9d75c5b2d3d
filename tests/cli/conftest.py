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
