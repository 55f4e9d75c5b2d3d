"""`streamlib schema`: the file that is kept, a pair of apps that breaks it, and the pair repaired."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli

V1 = """
from decimal import Decimal
from streamlib import App, Event

app = App("shop")

class OrderStatusUpdated(Event):
    order_id: str
    state: str
    total: Decimal = Decimal(0)

orders = app.topic("orders", OrderStatusUpdated, key="order_id")
"""

BROKEN = V1.replace("    state: str\n", "    status: str\n")
"""The field is renamed within version 1."""

REPAIRED = (
    V1.replace("(Event)", "(Event, version=2)").replace("    state: str\n", "    status: str\n")
    + """
@app.upcast(OrderStatusUpdated, from_version=1)
def state_became_status(data: dict) -> dict:
    return {"order_id": data["order_id"], "status": data["state"], "total": data.get("total", "0")}
"""
)


@pytest.fixture
def kept(cli: Cli, shop: Path) -> Path:
    """schemas.json, as exported from the first version, in the directory of `cli`."""
    (shop / "v1.py").write_text(V1)
    (shop / "broken.py").write_text(BROKEN)
    (shop / "repaired.py").write_text(REPAIRED)
    done = cli("schema", "export", "v1:app", "schemas.json")
    assert (done.code, done.out, done.err) == (0, "", "wrote schemas.json\n")
    return shop / "schemas.json"


def test_the_same_app_passes_and_nothing_is_said_to_have_changed(cli: Cli, kept: Path) -> None:
    done = cli("schema", "check", "v1:app", "schemas.json")
    assert (done.code, done.out) == (0, "")
    assert "nothing has changed since schemas.json was written" in done.err


def test_a_breaking_change_is_named_and_fails(cli: Cli, kept: Path) -> None:
    done = cli("schema", "check", "broken:app", "schemas.json")
    assert done.code == 1
    lines = [line.split() for line in done.out.splitlines() if "BREAKING" in line]
    assert [line[1:5] for line in lines] == [
        ["orders", "OrderStatusUpdated", "1", "status"],
        ["orders", "OrderStatusUpdated", "1", "state"],
    ]
    assert "field removed: older workers require it" in done.out
    assert "required field added without a default" in done.out
    assert "2 breaking changes" in done.err
    assert "class OrderStatusUpdated(..., version=2)" in done.err
    assert "@app.upcast(OrderStatusUpdated, from_version=1)" in done.err


def test_the_next_version_with_an_upcaster_passes(cli: Cli, kept: Path) -> None:
    done = cli("schema", "check", "repaired:app", "schemas.json", "--json")
    assert done.code == 0
    assert [(one["version"], one["breaking"], one["change"].partition(":")[0]) for one in done.json] == [
        (1, False, "raised to version 2 now"),
        (2, False, "version added"),
    ]
    assert "nothing breaks; write schemas.json anew once this is deployed" in done.err


def test_json_says_of_each_change_where_it_is_and_whom_it_breaks(cli: Cli, kept: Path) -> None:
    done = cli("schema", "check", "broken:app", "schemas.json", "--json")
    assert done.code == 1
    assert {one["field"]: (one["breaking"], one["breaks"]) for one in done.json} == {
        "state": (True, "both"),
        "status": (True, "stored events"),
    }


def test_what_is_exported_is_stable_sorted_and_goes_to_stdout_too(cli: Cli, kept: Path) -> None:
    done = cli("schema", "export", "v1:app")
    assert done.code == 0
    assert done.out == kept.read_text()
    kept_schemas: Any = json.loads(done.out)
    assert json.dumps(kept_schemas, indent=2, sort_keys=True) + "\n" == done.out
    assert kept_schemas["topics"]["orders"]["key"] == "order_id"


def test_a_file_that_is_not_there_is_a_usage_error_with_the_way_out(cli: Cli, kept: Path) -> None:
    done = cli("schema", "check", "v1:app", "nowhere.json")
    assert (done.code, done.out) == (2, "")
    assert "cannot read nowhere.json: No such file or directory" in done.err
    assert "streamlib schema export v1:app nowhere.json" in done.err


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}'])
def test_a_file_that_holds_something_else_is_a_usage_error(cli: Cli, kept: Path, text: str) -> None:
    kept.write_text(text)
    done = cli("schema", "check", "v1:app", "schemas.json")
    assert done.code == 2
    assert "error: schemas.json holds no schemas" in done.err


def test_a_directory_that_is_not_there_is_a_usage_error(cli: Cli, kept: Path) -> None:
    done = cli("schema", "export", "v1:app", "nowhere/schemas.json")
    assert done.code == 2
    assert "cannot write nowhere/schemas.json: No such file or directory" in done.err


@pytest.mark.parametrize("verb", [("check",), ("schema", "export")])
def test_a_hole_in_a_chain_is_told_when_the_app_is_checked(cli: Cli, shop: Path, redis_url: str, verb: Any) -> None:
    (shop / "hole.py").write_text(REPAIRED.replace("version=2", "version=3"))
    done = cli(*verb, "hole:app", "--redis", redis_url)
    assert done.code == 2
    assert "version 1 is raised to 2, but nothing raises version 2 to 3" in done.err
    assert "add @app.upcast(OrderStatusUpdated, from_version=2)" in done.err


def test_a_line_of_an_older_version_is_published_as_its_class_has_it(
    cli: Cli, shop: Path, redis_url: str, client: Any
) -> None:
    """An archive has events as they were stored: `streamlib publish` reads them whatever the release."""
    (shop / "repaired.py").write_text(REPAIRED)
    data = {"order_id": "o-1", "state": "shipped", "total": "9.90"}
    lines = [{"type": "OrderStatusUpdated", "version": 1, "data": one} for one in (data, {"order_id": "o-2"})]
    text = "\n".join(map(json.dumps, lines))
    done = cli("publish", "repaired:app", "orders", "--redis", redis_url, "--json", stdin=text)
    assert (done.code, done.json["published"]) == (6, 1)
    assert "line 2: OrderStatusUpdated : the upcaster state_became_status failed on data of version 1" in done.err
    [(_, fields)] = client.xrange("orders")
    assert (fields[b"v"], json.loads(fields[b"data"])) == (
        b"2",
        {"order_id": "o-1", "status": "shipped", "total": "9.90"},
    )
