"""`streamlib check` of an app with every kind of group, before its first run and after it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli


def failed(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["check"]: row["detail"] for row in rows if not row["ok"]}


def test_an_app_fits_the_redis_that_it_has_run_on(
    cli: Cli, bank: Path, move: Callable[..., None], redis_url: str
) -> None:
    before = cli("check", "bank:app", "--json", "--redis", redis_url)
    assert (before.code, failed(before.json)) == (0, {})
    move(a=1, b=2)  # creates every group
    after = cli("check", "bank:app", "--json", "--redis", redis_url)
    assert (after.code, failed(after.json)) == (0, {})
    kinds = {row["check"]: row["detail"] for row in after.json if row["check"].startswith("group ")}
    assert kinds["group ledger of moves"] == "a ordered, as stored"


@pytest.mark.allow_keys("{moves.0}:owner:ledger", "{moves.1}:keys:ledger")
@pytest.mark.parametrize("key", ["{moves.0}:owner:ledger", "{moves.1}:keys:ledger"])
def test_a_key_of_an_ordered_group_that_is_something_else(
    cli: Cli, bank: Path, redis_url: str, client: Any, key: str
) -> None:
    client.set(key, "somebody else's")
    found = cli("check", "bank:app", "--json", "--redis", redis_url)
    assert found.code == 1
    assert f"key '{key}' should be a hash, but is a string" in failed(found.json)["keys"]
