"""The walk through the shop is true: its commands run as they stand, and print what stands below them."""

import os
import re
import subprocess
import sys
import textwrap
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.delivering import running
from tests.helpers.shop import open_shop
from workers.shop.orders import CreateOrder, OrderRow, order_view

ROOT = Path(__file__).parents[1]
SHOP = (ROOT / "docs/shop.md").read_text()
PATTERNS = (ROOT / "docs/patterns.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", SHOP, re.M | re.S)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A fresh folder, with `streamlib` and `python` on the PATH of its commands."""
    (tmp_path / "bin").mkdir()
    for name, command in (("python", ""), ("streamlib", "-m streamlib ")):
        file = tmp_path / "bin" / name
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" {command}"$@"\n')
        file.chmod(0o755)
    return tmp_path


def test_the_walk_through_the_shop_prints_what_it_says(folder: Path) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STREAMLIB_")}
    env = inherited | {"PATH": f"{folder / 'bin'}{os.pathsep}{inherited.get('PATH', '')}", "PYTHONPATH": str(ROOT)}
    script = "\n".join(blocks("console"))
    done = subprocess.run(
        ["bash", "-euxc", script], cwd=folder, env=env, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    printed = _plain(done.stdout)
    report, letters, account = blocks("text")
    assert _plain(report) in printed
    assert _plain(account) in printed
    for letter in letters.splitlines():
        assert _plain(letter) in printed
    assert len(list((folder / "outbox").iterdir())) == 4


async def test_the_python_of_the_shop_runs(redis_url: str) -> None:
    (usage,) = blocks("python")
    known: dict[str, Any] = {"CreateOrder": CreateOrder, "Decimal": Decimal, "order_view": order_view}
    exec("async def walk(app):\n" + textwrap.indent(f"{usage}return rows", "    "), known)  # noqa: S102
    async with open_shop(redis_url) as app, running(app, ["order-view"]):
        rows = await known["walk"](app)
    assert rows == [OrderRow(order_id="o-5", customer_id="u-2", total=Decimal(40), status="created")]


def test_every_link_of_the_table_of_patterns_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PATTERNS + SHOP)
    assert links
    for link in links:
        assert (ROOT / "docs" / link).exists(), link


def _plain(text: str) -> str:
    """The text with single spaces, as tables are as wide as what they hold."""
    return " ".join(text.split())
